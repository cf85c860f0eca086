"""Readings of a run's field instead of its mesh."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import janus_stub
from tests.support.ball_run import ball_run, register
from threedgen.data.coloured_mesh import read_mesh
from threedgen.evaluation.janus.meter import RunField
from threedgen.evaluation.janus.options import MeterConfig
from threedgen.evaluation.janus.results import Reader
from threedgen.export.files.glb import save_glb
from threedgen.export.run_field import load_run_field
from threedgen.export.shape.from_field import field_surface
from threedgen.geometry.poses import orbit_c2w


@pytest.fixture(autouse=True)
def ball(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    janus_stub.register()


def ring() -> np.ndarray:
    angle = torch.deg2rad(torch.tensor([0.0, 90, 200]))
    return orbit_c2w(torch.full((3,), 0.3), angle, torch.full((3,), 2.6)).numpy()


def test_field_render_matches_its_mesh(tmp_path: Path) -> None:
    run = ball_run(tmp_path / "run", "march.samples=256")
    save_glb(field_surface(load_run_field(run).view, 128), run / "mesh.glb", {})
    field = RunField(run).render(ring(), np.deg2rad(40), 48, background=1.0)
    mesh = read_mesh(run / "mesh.glb").render(ring(), np.deg2rad(40), 48, background=1.0)
    assert field.shape == mesh.shape == (3, 48, 48, 3) and mesh.std() > 0.05
    assert np.abs(field - mesh).mean() < 0.02 < 0.05 < np.abs(field - np.roll(mesh, 1, axis=0)).mean()


def test_reading_of_checkpoints_is_kept_until_they_change(tmp_path: Path) -> None:
    reader = Reader(MeterConfig(classifier={"name": "stub"}, size=24), ["a ball"], tmp_path / "looks", None, False)
    run = ball_run(tmp_path / "run")
    first = reader.read(run / "checkpoints", "ball", "a ball")
    assert first["state"] == "seen" and len(first["sides"]) == 8
    seen = (tmp_path / "looks" / "ball.json").read_text()
    assert reader.read(run / "checkpoints", "ball", "a ball") == first
    assert (tmp_path / "looks" / "ball.json").read_text() == seen
    ball_run(tmp_path / "other", p0=0.1)
    (tmp_path / "other" / "checkpoints" / "last.ckpt").rename(run / "checkpoints" / "last.ckpt")
    reader.read(run / "checkpoints", "ball", "a ball")
    assert (tmp_path / "looks" / "ball.json").read_text() != seen


def test_transparent_field_is_empty(tmp_path: Path) -> None:
    reader = Reader(MeterConfig(classifier={"name": "stub"}, size=24), ["a ball"], tmp_path / "looks", None, False)
    run = ball_run(tmp_path / "run", p4=1e-4)
    looked = reader.read(run / "checkpoints", "ball", "a ball")
    assert looked["state"] == "empty" and "run" in looked["reason"]
    (run / "checkpoints" / "last.ckpt").write_bytes(b"not a checkpoint")
    looked = reader.read(run / "checkpoints", "ball", "a ball")
    assert looked["state"] == "unreadable" and "last.ckpt" in looked["reason"]
    (run / "checkpoints" / "last.ckpt").unlink()
    looked = reader.read(run / "checkpoints", "ball", "a ball")
    assert looked["state"] == "unreadable" and "cannot be read" in looked["reason"]
