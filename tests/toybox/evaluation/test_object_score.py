import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.support.errors import refused
from threedgen.config import ConfigError
from threedgen.geometry.images import to_uint8, write_png
from threedgen.systems.generate.outputs import view_azimuths, write_views
from threedgen.toybox.evaluation import object_score
from threedgen.toybox.evaluation.fidelity import Surface
from threedgen.toybox.evaluation.held_out import held_out_cases
from threedgen.toybox.evaluation.options import Evaluate3DConfig
from threedgen.toybox.world.toybox import render_orbit
from threedgen.train.status import Status


def config(tmp_path: Path, probe_file: str, **changes: Any) -> Evaluate3DConfig:
    values = {"task": "evaluate-3d", "out": str(tmp_path / "run"), "probe": {"weights": probe_file}, "prompts": 3}
    return Evaluate3DConfig.model_validate(values | changes)


def test_objects_are_made_measured_and_not_repeated(tmp_path: Path, probe_file: str, monkeypatch) -> None:
    """Fake runs write ground truth; one fails."""
    turntable = (f"result.turntable.{key}" for key in ("height=64", "width=64", "n_view=8"))
    overrides = (*turntable, "trainer.max_steps=7")
    options = config(tmp_path, probe_file, threads=1, overrides=overrides)
    cases = {case.caption: case for case in held_out_cases(3, 0, spread=True)}
    failing, made = list(cases)[1], list[str]()

    def fake(run: Any, resume: Path | None, quiet: bool) -> Status:
        assert run.trainer.max_steps == 7 and run.trainer.devices == 1 and quiet and not run.export.enabled
        folder = Path(run.out)
        if (folder / "views.png").is_file():
            assert resume == folder
            return Status.FINISHED
        made.append(run.prompt)
        if run.prompt == failing:
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "last.ckpt").touch()
            raise ConfigError("the loss is not finite")
        azimuth = view_azimuths(run.result.turntable)
        write_views(render_orbit(cases[run.prompt].build_truth(9), azimuth, 0.26, 64, fov=0.7).rgb, folder)
        (folder / "summary.json").write_text(json.dumps({"seconds": 12.5, "peak_memory_mib": 100.0}))
        return Status.FINISHED

    monkeypatch.setattr(object_score, "run_status", fake)
    monkeypatch.setattr(object_score, "CALIBRATION", 2)
    monkeypatch.setattr(object_score, "load_run_field", lambda folder: SimpleNamespace(view=None))
    monkeypatch.setattr(object_score, "surface", lambda *place: Surface(9.0, True))
    assert object_score.run(options, quiet=True) == 0 and made == list(cases)
    figures = json.loads((tmp_path / "run" / "report.json").read_text())
    assert figures["failed"] == 1 and figures["costs"]["seconds_median"] == 12.5
    assert figures["measured"]["noun"]["total"] == figures["probe_on_truth"]["noun"]["total"] / 2 == 3
    fidelity = figures["fidelity"]
    assert fidelity["floor_mottle"]["mean"] > 0 and figures["objects"][0]["mottle"] is not None
    assert fidelity["translucent"] == 2 and fidelity["without_surface"] == 1 and fidelity["roughness"]["mean"] == 9
    assert 0 < fidelity["floor_roughness"]["mean"] < 9
    assert fidelity["floor_fid"]["mean"] < fidelity["fid"]["mean"]  # one of three is grey
    assert figures["objects"][1]["answers"]["noun"] is False and figures["objects"][1]["seconds"] is None
    assert "| one front only |" in (tmp_path / "run" / "report.md").read_text()
    assert (tmp_path / "run" / "sheet.png").is_file()
    assert object_score.run(options, resume=tmp_path / "run", quiet=True) == 0
    assert made == [*cases, failing]  # only the failed one is repeated
    next((tmp_path / "run" / "objects").glob("*/views.npz")).write_bytes(b"PK")  # as after a full disk
    with refused(None, "views.npz"):
        object_score.run(options, resume=tmp_path / "run", quiet=True)


def test_existing_views_are_measured(tmp_path: Path, probe_file: str) -> None:
    mine = tmp_path / "mine"
    for k, case in enumerate(held_out_cases(3, 0, spread=True)):
        (mine / f"{k:05d}").mkdir(parents=True)
        views = render_orbit(case.build_truth(9), np.arange(8) * np.pi / 4, 0.26, 32, fov=0.7).rgb
        for number, view in enumerate(views):
            write_png(mine / f"{k:05d}" / f"{number}.png", to_uint8(view))
    options = config(tmp_path, probe_file, threads=1, existing=str(mine))
    options.check()
    assert object_score.run(options, quiet=True) == 0
    figures = json.loads((tmp_path / "run" / "report.json").read_text())
    assert figures["failed"] == 0 and figures["measured"]["noun"]["total"] == 3
    assert not {"without_surface", "translucent"} & figures["fidelity"].keys()
    next(mine.rglob("7.png")).unlink()
    with refused(None, "existing"):
        object_score.run(options, resume=tmp_path / "run", quiet=True)


def test_run_ends_at_ctrl_c_and_at_mistakes_of_all_objects(tmp_path: Path, probe_file: str, monkeypatch) -> None:
    def no_prior(*args: Any, **kwargs: Any) -> Status:
        raise ConfigError("weights: this installation lacks the embedded prior")

    monkeypatch.setattr(object_score, "run_status", lambda *args, **kwargs: Status.INTERRUPTED)
    assert object_score.run(config(tmp_path, probe_file), quiet=True) == 130
    monkeypatch.setattr(object_score, "run_status", no_prior)
    for changes, key, value in (
        ({}, None, "the embedded prior"),
        ({"config": "sample-toybox"}, "config", "'sample-toybox'"),
    ):
        with refused(key, value):
            object_score.run(config(tmp_path, probe_file, **changes), quiet=True)
