"""The task "evaluate-own-prior": other renders of assets are nearer than samples of a random prior."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.asset_folder import make_assets
from tests.support.task_server import prior_folder
from threedgen import cli
from threedgen.evaluation.prior import compare


def test_renders_are_nearer_than_samples_and_nothing_is_sampled_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_assets(Path("assets"), more=3)
    command = ["--config", "evaluate-own-prior", "data=assets", f"prior.weights={prior_folder()}", "n_view=2"]
    command += ["steps=1", "views.size=16", "views.azimuths=4", "engine=here", "threads=1", "batch=4", "out=run", "-q"]
    assert cli.main(command) == 0
    figures = json.loads(Path("run/report.json").read_text())
    assert figures["drawn"]["fid"]["mean"] > figures["other renders"]["fid"]["mean"] >= 0
    near, far = figures["other renders"]["likeness"], figures["drawn"]["likeness"]
    assert far["high"] < near["low"] <= near["mean"] <= 1
    assert "| drawn | " in Path("run/report.md").read_text() and Path("run/drawn.png").exists()
    kept = {path: path.stat().st_mtime_ns for path in Path("run/samples").iterdir()}
    assert len(kept) == 2 and cli.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("run/samples").iterdir()} == kept
    assert json.loads(Path("run/report.json").read_text()) == figures


def test_distances_of_equal_and_shifted_features() -> None:
    truth = np.random.default_rng(0).normal(size=(30, 2, 3)) + 2
    same, shifted = compare(truth, truth), compare(truth + 1, truth)
    assert abs(same["fid"]["mean"] or 0) < 1e-6 and same["likeness"]["mean"] == pytest.approx(1)
    assert shifted["fid"]["mean"] == pytest.approx(3, rel=1e-3) and (shifted["fid"]["low"] or 9) <= 3.001
