"""The task "evaluate-3d" on fake runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.errors import refused
from threedgen.config import ConfigError
from threedgen.data.toybox.world import render_orbit
from threedgen.evaluation.toybox import object_score
from threedgen.evaluation.toybox.fidelity import Surface
from threedgen.evaluation.toybox.held_out import held_out_cases
from threedgen.evaluation.toybox.options import Evaluate3DConfig
from threedgen.systems.generate.outputs import view_azimuths, view_indices, write_views
from threedgen.train.status import Status


def test_views_are_evenly_spaced() -> None:
    assert view_indices(8) == list(range(8)) and view_indices(3) == [0, 1, 2]
    for n in (9, 60, 100, 120):
        gaps = np.diff([*view_indices(n), n])
        assert len(gaps) == 8 and gaps.max() - gaps.min() <= 1


def test_objects_are_made_measured_and_not_repeated(
    tmp_path: Path, probe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fake runs write ground truth; one fails."""
    config = Evaluate3DConfig(
        task="evaluate-3d",
        out=str(tmp_path / "run"),
        probe={"weights": probe_file},
        prompts=3,
        calibration=1,
        overrides=("result.turntable.height=64", "result.turntable.width=64", "trainer.max_steps=7"),
        threads=1,
    )  # type: ignore[call-arg]
    cases = {case.caption: case for case in held_out_cases(3, 0, spread=True)}
    broken = list(cases)[1]
    made: list[str] = []

    def fake(begun: Any, resume: Path | None, quiet: bool) -> Status:
        assert begun.trainer.max_steps == 7 and quiet and not begun.export.enabled
        folder = Path(begun.out)
        if (folder / "views.png").is_file():
            assert resume == folder
            return Status.FINISHED
        made.append(begun.prompt)
        if begun.prompt == broken:
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints" / "last.ckpt").touch()
            raise ConfigError("the loss was no longer a number")
        azimuth = view_azimuths(begun.result.turntable)
        views = render_orbit(cases[begun.prompt].truth(9), azimuth, 0.26, 64, fov=0.7).rgb
        write_views(views, folder)
        (folder / "summary.json").write_text(json.dumps({"seconds": 12.5, "peak_memory_mib": 100.0}))
        return Status.FINISHED

    monkeypatch.setattr(object_score, "run_status", fake)
    monkeypatch.setattr(object_score, "surface", lambda *place: Surface(9.0, True))
    assert object_score.run(config, quiet=True) == 0
    assert made == list(cases)
    figures = json.loads((tmp_path / "run" / "report.json").read_text())
    assert figures["failed"] == 1 and figures["costs"]["seconds_median"] == 12.5
    assert figures["measured"]["noun"]["total"] == 3 and figures["probe_on_truth"]["noun"]["total"] == 3
    near = figures["fidelity"]
    assert near["floor_mottle"] > 0 and figures["objects"][0]["mottle"] is not None
    assert near["translucent"] == 2 and near["without_surface"] == 1 and near["roughness"] == 9
    assert 0 < near["floor_roughness"] < 9 and near["floor_fid"] < near["fid"]  # one of three is a grey picture
    assert figures["objects"][1]["answers"]["noun"] is False and figures["objects"][1]["seconds"] is None
    assert "| one front only |" in (tmp_path / "run" / "report.md").read_text()
    assert (tmp_path / "run" / "sheet.png").is_file()

    assert object_score.run(config, resume=tmp_path / "run", quiet=True) == 0
    assert made == [*cases, broken]  # only the one that failed is tried again
    next((tmp_path / "run" / "objects").glob("*/views.npz")).write_bytes(b"PK")  # as a full disk might leave it
    with refused(None, "views.npz"):
        object_score.run(config, resume=tmp_path / "run", quiet=True)


def test_run_ends_at_ctrl_c_and_at_mistakes_of_all_objects(
    tmp_path: Path, probe_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wanted(**changes: Any) -> Evaluate3DConfig:
        values = {"task": "evaluate-3d", "out": str(tmp_path / "run"), "probe": {"weights": probe_file}, "prompts": 2}
        return Evaluate3DConfig(**(values | changes))  # type: ignore[arg-type]

    monkeypatch.setattr(object_score, "run_status", lambda *args, **kwargs: Status.INTERRUPTED)
    assert object_score.run(wanted(), quiet=True) == 130

    def no_prior(*args: Any, **kwargs: Any) -> Status:
        raise ConfigError("weights: this installation lacks the embedded prior")

    monkeypatch.setattr(object_score, "run_status", no_prior)
    with refused(None, "the embedded prior"):
        object_score.run(wanted(), quiet=True)
    with refused("config", "'sample-toybox'"):
        object_score.run(wanted(config="sample-toybox"), quiet=True)
    with refused(None, "mvdream-toybox"):
        object_score.run(wanted(config="mvdream-toibox"), quiet=True)
