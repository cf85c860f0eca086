"""The asset at the end of a run: what it leaves, and that nothing about it can spoil the run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ball_run import Ball, ball_run, register

from threedgen import runs
from threedgen.config import ConfigError, load, plain
from threedgen.systems.asset import write_asset
from threedgen.systems.outputs import Run

WORDS = [
    "field.name=ball", "occupancy=null", "prompt=a ball", "trainer.max_steps=10", "export.enabled=true",
    "export.texture=128", "export.lods=[]", "export.resolution=32", "export.refine=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _ball(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def system(*words: str, **place: float) -> Any:
    """What write_asset sees of a system."""
    config = load("mvdream-toybox", [*WORDS, "export.budget=200", *words])
    field = Ball()
    with torch.no_grad():
        for key, value in place.items():
            field.place[int(key[1:])] = value
    trainer = SimpleNamespace(global_step=10)
    return SimpleNamespace(config=config, field=field, occupancy=None, device="cpu", trainer=trainer)


def test_a_run_ends_with_its_asset(tmp_path: Path) -> None:
    notes: list[str] = []
    figures = write_asset(system(), tmp_path, notes)
    assert figures["asset"]["file"] == "asset/a_ball.glb" and figures["asset"]["levels"]["a_ball"] <= 200
    assert (tmp_path / "asset/a_ball.glb").is_file() and (tmp_path / "asset/asset.json").is_file() and notes == []
    (tmp_path / "summary.json").write_text('{"asset": {"file": "asset/a_ball.glb"}}')
    assert Run(tmp_path, "finished").asset == tmp_path / "asset/a_ball.glb"
    (tmp_path / "asset/a_ball.glb").unlink()
    assert Run(tmp_path, "finished").asset is None


def test_what_stands_in_the_way_is_a_note(tmp_path: Path) -> None:
    write_asset(system(), tmp_path, [])
    notes: list[str] = []
    assert write_asset(system(p3=3.0), tmp_path, notes) == {}
    assert "no asset: the field fills its world" in notes[0] and not (tmp_path / "asset").exists()
    notes.clear()
    assert write_asset(system("export.budget=12"), tmp_path, notes) or "no asset" in notes[0]
    notes.clear()
    write_asset(system(p4=8.0), tmp_path, notes)
    assert "asset: the object is translucent" in notes[0]


def test_a_disk_that_is_full_is_said(tmp_path: Path) -> None:
    (tmp_path / "asset").write_text("a file in the way")
    with pytest.raises(ConfigError, match="could not be written"):
        write_asset(system(), tmp_path, [])


def test_an_older_run_goes_on_with_an_export(tmp_path: Path) -> None:
    """Its config knows no section `export`: that is no other run."""
    folder = ball_run(tmp_path / "run")
    old = runs.stored_config(folder)
    assert old is not None
    del old["export"]
    assert runs.differences(old, plain(load(folder / "config.yaml", ["export.enabled=true"]))) == []


def test_missing_packages_are_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from threedgen.export.options import ExportSection

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ExportSection(formats=("usdz",), enabled=False).check()
    with pytest.raises(ConfigError, match="usd-core"):
        ExportSection(formats=("usdz",), enabled=True).check()
