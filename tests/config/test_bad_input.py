from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.errors import Trap
from tests.support.task_server import TINY, prior_folder, write_config
from threedgen import cli, config, folder
from threedgen.run import folder as runs
from threedgen.systems.generate import task as generate_run


@pytest.fixture(autouse=True)
def place(no_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_config(folder / "tiny.yaml", TINY, prior={"weights": str(prior_folder()), "dtype": "fp32"})
    return folder


def mistake(capsys: pytest.CaptureFixture[str], *words: str, said: tuple[str, ...] = (), code: int = 2) -> str:
    """Return the message of a mistake, one printable line with these parts; other lines are warnings."""
    exit_code = cli.main(list(words))
    output = capsys.readouterr()
    assert exit_code == code, output.err
    (line,) = [line for line in output.err.split("\n")[:-1] if not line.startswith("warning: ")]
    assert line.isprintable() and len(line) < 500, output.err
    assert all(part in line for part in said), line
    return line


LONG = "a" * 5000
MISTAKES: list[tuple[list[str], tuple[str, ...]]] = [
    (["--config", "mvdream-toybx", "prompt=a dog"], ("'mvdream-toybox'",)),
    (["--config", "tiny.yaml", "prompt="], ("prompt: ", 'prompt="a red penguin')),
    (["--config", "tiny.yaml", "prompt=a r\udcc3\udca9d dog"], ("prompt: ", "LC_ALL=C.UTF-8")),  # é in a C locale
    (["--config", "tiny.yaml", "march.radius=3"], ("field.radius=1", "march.radius=3")),
    (["--config", "tiny.yaml", "lr=1"], ("'optimizer.encoding' or 'optimizer.networks'?",)),
    (["--config", "tiny.yaml", "field.name=sdf", "field.density_bias=3"], ("field.density_bias: ", "field.name=ngp")),
    *((["--config", "tiny.yaml", "prompt=a dog", f"{key}={value}"], ()) for key, value in (
        ("seed", f"[{', '.join(['0'] * 100)}]"), ("prior.weights", LONG), (LONG, "0"),
    )),
    (["--config", "tiny.yaml", "prompt=a dog", "--train"], ("--train", "without a flag")),  # of threestudio
    (["--config", "tiny.yaml", "prompt=a dog", "dry_run=true"], ("dry_run: ", "--dry-run")),
    (["--config", "batch", "export.budget=2000"], ("export.budget: ", "overrides=[export.budget=")),
    (["'seeds=[0,", "1]'"], ('"key=value"',)),
    (["--out", "dog"], (" out=...",)),
    (["-p", "dog"], ("key=value",)),
    (["--help", "batch"], ("--config batch --help", "'batch'")),
    (["--help", "nothing"], ("view_prompts, system, prior, distillation, field, ",)),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISTAKES)
def test_mistake_is_one_line_and_leaves_no_files(place: Path, capsys, words: list[str], said: tuple[str, ...]) -> None:
    mistake(capsys, *words, said=said)
    assert [path.name for path in place.iterdir()] == ["tiny.yaml"]


def test_file_without_weights_is_not_opened(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, marker = place / "model.pt", place / "executed"
    torch.save({"model": Trap(marker)}, file)
    words = ("prior.weights=model.pt", f"prior.tokenizer={folder('weights') / 'toybox-prior'}", "-q")
    mistake(capsys, "--config", "tiny.yaml", *words, said=("model.pt",))
    assert not marker.exists() and not (place / "outputs").exists()


ODD = [
    "a red dog\nwearing a 🎩 <b>../../etc</b>",
    "$HOME $(touch x) `touch x` ${oc.env:HOME}",
    "\x1b[31ma red dog\x07",
    "-rf / --config x",
    "a red dog and " * 800,
]


@pytest.mark.parametrize("prompt", ODD)
def test_any_prompt_is_accepted(place: Path, capfd, caplog, monkeypatch, prompt: str) -> None:
    def nothing_to_train(system: Any, *arguments: Any, **options: Any) -> Any:
        system._trainer = type("Trainer", (), {"is_global_zero": True, "global_step": 1})()
        return generate_run.Status.FINISHED

    monkeypatch.setattr("threedgen.train.loop.fit", nothing_to_train)
    monkeypatch.setattr("threedgen.systems.generate.optimise.write_results", lambda *arguments: {})
    quick = ["warm_start.share=0", "preview.enabled=false"]
    code = cli.main(["--config", "tiny.yaml", f"prompt={prompt}", "prompt_check=off", *quick])
    output = capfd.readouterr()
    assert code == 0, output.err
    said = [*output.out.splitlines(), *output.err.splitlines(), *(record.getMessage() for record in caplog.records)]
    assert all(line.isprintable() for line in said)
    (folder,) = (place / "outputs" / "tiny").iterdir()
    assert sorted(path.name for path in place.iterdir()) == ["outputs", "tiny.yaml"]
    assert folder.name == runs.slug(prompt) and len(folder.name) < 70
    assert config.load(folder / "config.yaml").prompt == prompt  # as it was given
    assert output.out.splitlines()[-1] == str(folder.relative_to(place))
