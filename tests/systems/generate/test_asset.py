import functools
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tests.support.ball_run import Ball, ball  # noqa: F401
from tests.support.kept_folder import kept_folder
from threedgen.config import load
from threedgen.representations.shading import Material
from threedgen.systems.generate.outputs import write_asset
from threedgen.systems.generate.result import Run

WORDS = [
    "field.name=ball", "occupancy=null", "prompt=a ball", "trainer.max_steps=10", "export.texture=128",
    "export.lods=[]", "export.resolution=32", "export.refine=0", "export.budget=200",
]  # fmt: skip


def system(**place: float) -> Any:
    config = load("mvdream-toybox", WORDS)
    field = Ball()
    with torch.no_grad():
        for key, value in place.items():
            field.place[int(key[1:])] = value
    trainer = SimpleNamespace(global_step=10)
    parts = {"field": field, "occupancy": None, "material": Material()}
    return SimpleNamespace(config=config, **parts, device="cpu", trainer=trainer)


@functools.cache
def earlier() -> Path:
    folder = kept_folder()
    write_asset(system(), folder, [])
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(earlier(), tmp_path / "run"))


def test_changed_file_is_kept(run: Path) -> None:
    notes, mine = list[str](), run / "asset/a_ball.glb"
    (run / "summary.json").write_text('{"asset": {"file": "asset/a_ball.glb"}}')
    assert Run(run, "finished").asset == mine
    mine.write_bytes(b"painted for hours")
    assert write_asset(system(), run, notes) == {}
    assert len(notes) == 1 and notes[0].startswith("no asset: ") and str(mine) in notes[0]
    assert list((run / "asset").iterdir()) == [mine] and mine.read_bytes() == b"painted for hours"
    mine.unlink()
    assert Run(run, "finished").asset is None


@pytest.mark.parametrize(
    ("place", "fault", "note"),
    [
        ({"p3": 3.0}, None, "no asset: the object fills"),
        ({}, RuntimeError("two\nlines"), "no asset: RuntimeError: two lines (python launch.py"),
    ],
)
def test_error_becomes_one_note(run: Path, monkeypatch, caplog, place, fault: Exception | None, note: str) -> None:
    """An asset of an earlier part of the run is removed."""
    if fault is not None:
        monkeypatch.setattr("threedgen.export.asset.unwrap", Mock(side_effect=fault))
    notes, made = list[str](), system(**place)
    caplog.clear()
    assert write_asset(made, run, notes) == {} and not (run / "asset").exists()
    assert len(notes) == 1 and notes[0].startswith(note)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == notes
