import logging
from pathlib import Path
from typing import Any

import pytest

import threedgen
from tests.support.ball_run import BallConfig, register
from tests.support.errors import refused
from tests.support.task_server import TINY, prior_folder, snapshot, tiny_generate
from threedgen import config
from threedgen.config import ConfigError
from threedgen.run.metrics import read_summary
from threedgen.systems.generate import task as generate_run
from threedgen.systems.generate.options import GenerateConfig
from threedgen.systems.generate.result import Run
from threedgen.systems.generate.system import piecewise_constant
from threedgen.train.status import Status


@pytest.mark.parametrize("word", ["material.name=diffuse", "loss.orientation=1", "guidance_input=normal"])
def test_missing_capability_is_refused(tmp_path: Path, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    monkeypatch.setattr(BallConfig, "has_normals", False)
    path = tiny_generate(tmp_path, field={"name": "ball"}, export={"enabled": False})
    config.load(path)
    with refused(None, word.split("=")[0], "field.name=ball"):
        config.load(path, [word])


@pytest.mark.parametrize(
    "word", ["refine.strengths=[]", "refine.share=0.5", "stages={a: {refine: {strengths: []}}, b: {}}"]
)
def test_single_view_prior_may_refine_an_object(word: str) -> None:
    config.load("quick-toybox", ["prompt=a red penguin", "prior.name=stable-diffusion", word]).check()


@pytest.mark.parametrize(
    ("name", "word", "key"),
    [
        ("mvdream-sd21", "prior=stable-diffusion", "prior.weights=toybox-base"),
        ("magic3d-if-sd", "stages.coarse.prior=stable-diffusion", "stages.coarse.prior.weights=toybox-base"),
    ],
)
def test_note_if_a_config_of_released_weights_has_embedded_ones(name: str, word: str, key: str) -> None:
    assert any(key in note for note in config.load(name, ["prompt=a dog", word]).prompt_notes())
    assert not any("weights" in note for note in config.load(name, ["prompt=a dog"]).prompt_notes())


def test_piecewise_constant_schedule() -> None:
    assert [piecewise_constant({"0%": 8, "50%": 12}, step, 16) for step in (0, 7, 8, 15)] == [8, 8, 12, 12]
    assert piecewise_constant({10: 5, 20: 6}, 0, 30) == 5 and piecewise_constant(7, 3, 10) == 7


def values(**more: Any) -> dict[str, Any]:
    short = {"max_steps": 2, "val_check_interval": 0, "accelerator": "cpu"}
    return {"trainer": short, "warm_start": {"share": 0}, "preview": {"enabled": False}} | more


@pytest.mark.parametrize("quiet", [False, True])
def test_generate_from_python(tmp_path: Path, monkeypatch, capsys, quiet: bool) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny_generate(tmp_path)
    run = threedgen.generate(prompt="a blue cat", config=path, quiet=quiet, out=tmp_path / "cat", **values())
    assert isinstance(run, Run) and run.folder == tmp_path / "cat" and run.status == "finished"
    for file in map(run.file, ("mesh.glb", "turntable.mp4", "views.png", "summary.json", "report.html")):
        assert file is not None and file.parent == run.folder and file.stat().st_size > 100
    output = capsys.readouterr()
    shown = ("distilling at 12 px: 2/2", "turntable: ", "surface: 1/1", "page: 1/1")
    assert run.file("preview.png") is None and all((phase in output.err) is not quiet for phase in shown), output.err
    assert output.out.startswith("weights: ") is not quiet and len(output.out.splitlines()) == (not quiet)
    assert config.load(run.folder / "config.yaml").prompt == "a blue cat"
    before = snapshot(run.folder)
    again = threedgen.generate(prompt="a blue cat", config=path, out=str(tmp_path / "cat"), **values())
    assert again == run and before.items() - snapshot(run.folder).items() <= {("config.yaml", before["config.yaml"])}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"prompt": 3}, "prompt: "),
        ({"sed": 3}, "'seed'"),
        ({"config": "train-toybox-prior"}, "task generate"),
        ({"config": "mvdream-toybx"}, "'mvdream-toybox'"),
        ({"out": "tiny.yaml"}, "out: tiny.yaml"),
        ({"prior": {"weights": "nowhere.pt"}}, "prior.weights: "),
    ],
)
def test_generate_refuses_mistakes(tmp_path: Path, monkeypatch, arguments: dict[str, Any], expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"prompt": "a cat", "config": tiny_generate(tmp_path)} | arguments
    with pytest.raises(ConfigError) as caught:
        threedgen.generate(**values)
    assert expected in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_generate_raises_for_a_failed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(options: GenerateConfig, *more: Any, **named: Any) -> Status:
        (Path(str(options.out)) / "summary.json").write_text('{"reason": "the loss term is not finite"}')
        return Status.FAILED

    monkeypatch.setattr(generate_run, "run_status", failed)
    with pytest.raises(ConfigError, match="run: the loss term is not finite"):
        threedgen.generate("a cat", tiny_generate(tmp_path), out=tmp_path / "run")


@pytest.mark.parametrize(
    ("status", "error"), [(Status.INTERRUPTED, KeyboardInterrupt), (Status.TERMINATED, SystemExit)]
)
def test_stopped_run_ends_a_loop_over_runs(status: Status, error: type, tmp_path: Path, monkeypatch) -> None:
    steps: int | None = None

    def stopped(options: GenerateConfig, *more: Any) -> Status:
        if steps is not None:  # the results were written
            (tmp_path / "run" / "summary.json").write_text(f'{{"status": "interrupted", "steps": {steps}}}')
        return status

    def generate() -> str:
        return threedgen.generate("a cat", tiny_generate(tmp_path), out=tmp_path / "run").status

    monkeypatch.setattr(generate_run, "run_status", stopped)
    with pytest.raises(error) as caught:
        generate()
    assert error is KeyboardInterrupt or caught.value.code == 143
    if status is Status.INTERRUPTED:
        steps = 1
        assert generate() == "interrupted"
        steps = None  # the results are those of the call before
        with pytest.raises(error):
            generate()


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "dtype"), [("32-true", "fp32"), ("16-mixed", "fp16"), ("bf16-mixed", "bf16")])
def test_generate_on_a_gpu(precision: str, dtype: str, tmp_path: Path) -> None:
    trainer = TINY["trainer"] | {"accelerator": "gpu", "precision": precision}
    config = tiny_generate(tmp_path, prior={"weights": str(prior_folder()), "dtype": dtype})
    run = threedgen.generate("a red dog", config, out=tmp_path / "run", trainer=trainer)
    assert run.status == "finished" and run.file("mesh.glb") is not None


def test_empty_field_gives_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    nothing = {"name": "ngp", "density_blob": "none", "density_bias": -100.0, "width": 8}
    field = nothing | {"encoding": TINY["field"]["encoding"]}
    run = threedgen.generate("a red dog", tiny_generate(tmp_path), out=tmp_path / "run", field=field, **values())
    assert run.status == "finished" and run.file("mesh.glb") is None and run.file("views.png") is not None
    assert len(read_summary(run.folder)["notes"]) == 1 and "no solid object" in caplog.text
