import logging
from pathlib import Path
from typing import Any

import pytest

import threedgen
from tests.support.task_server import TINY, prior_folder, snapshot, tiny_generate
from threedgen import config
from threedgen.config import ConfigError
from threedgen.run.metrics import read_summary
from threedgen.systems.generate import task as generate_run
from threedgen.systems.generate.options import GenerateConfig
from threedgen.systems.generate.result import Run
from threedgen.systems.generate.system import piecewise_constant
from threedgen.train.status import Status


def test_piecewise_constant_schedule() -> None:
    assert [piecewise_constant({"0%": 8, "50%": 12}, step, 16) for step in (0, 7, 8, 15)] == [8, 8, 12, 12]
    assert piecewise_constant({10: 5, 20: 6}, 0, 30) == 5 and piecewise_constant(7, 3, 10) == 7


def values(**more: Any) -> dict[str, Any]:
    short = {"max_steps": 2, "val_check_interval": 0, "accelerator": "cpu"}
    return {"trainer": short, "warm_start": {"share": 0}, "preview": {"enabled": False}} | more


def test_generate_from_python(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny_generate(tmp_path)
    run = threedgen.generate(prompt="a blue cat", config=path, out=tmp_path / "cat", **values())
    assert isinstance(run, Run) and run.folder == tmp_path / "cat" and run.status == "finished"
    for file in map(run.file, ("mesh.glb", "turntable.mp4", "views.png", "summary.json", "report.html")):
        assert file is not None and file.parent == run.folder and file.stat().st_size > 100
    output = capsys.readouterr()
    shown = ("distilling at 12 px: 2/2", "turntable: ", "surface: 1/1", "page: 1/1")
    assert run.file("preview.png") is None and all(phase in output.err for phase in shown), output.err
    assert output.out.startswith("weights: ") and len(output.out.splitlines()) == 1
    assert config.load(run.folder / "config.yaml").prompt == "a blue cat"
    before = snapshot(run.folder)
    again = threedgen.generate(prompt="a blue cat", config=path, out=str(tmp_path / "cat"), **values())
    assert again == run and before.items() - snapshot(run.folder).items() <= {("config.yaml", before["config.yaml"])}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"sed": 3}, "'seed'"),
        ({"config": "train-toybox-prior"}, "task generate"),
        ({"out": "tiny.yaml"}, "out: tiny.yaml"),
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
    def stopped(options: GenerateConfig, *more: Any) -> Status:
        return status

    def generate() -> str:
        return threedgen.generate("a cat", tiny_generate(tmp_path), out=tmp_path / "run").status

    monkeypatch.setattr(generate_run, "run_status", stopped)
    with pytest.raises(error) as caught:
        generate()
    assert error is KeyboardInterrupt or caught.value.code == 143


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
