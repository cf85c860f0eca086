"""How near a prior comes to assets: other renders of them are nearer than what a random prior draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.asset_folder import make_assets
from tests.support.task_server import prior_folder
from threedgen import cli
from threedgen.evaluation.assets import run as evaluation


def command(*more: str) -> int:
    tiny = ["views.size=16", "views.azimuths=4", "engine=here", "threads=1", "steps=1", "batch=4", "out=run", "-q"]
    weights = f"prior.weights={prior_folder()}"
    return cli.main(["--config", "evaluate-own-prior", "data=assets", weights, "n_view=2", *tiny, *more])


def test_truth_is_nearer_than_noise_and_nothing_is_drawn_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_assets(Path("assets"), more=3)
    assert command() == 0
    figures = json.loads(Path("run/report.json").read_text())
    assert figures["drawn"]["fid"]["mean"] > figures["other renders"]["fid"]["mean"] >= 0
    near, far = figures["other renders"]["likeness"], figures["drawn"]["likeness"]
    assert far["high"] < near["low"] <= near["mean"] <= 1
    assert "| drawn | " in Path("run/report.md").read_text() and Path("run/drawn.png").exists()
    kept = {path: path.stat().st_mtime_ns for path in Path("run/samples").iterdir()}
    assert len(kept) == 2 and command() == 0
    assert {path: path.stat().st_mtime_ns for path in Path("run/samples").iterdir()} == kept
    assert json.loads(Path("run/report.json").read_text()) == figures


def test_equal_features_are_at_no_distance() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(30, 2, 3)) + 2
    same, away = evaluation.compare(true, true), evaluation.compare(true + 1, true)
    assert abs(same["fid"]["mean"]) < 1e-6 and same["likeness"]["mean"] == pytest.approx(1)
    assert away["fid"]["mean"] == pytest.approx(3, rel=1e-3) and away["fid"]["low"] <= 3.001
