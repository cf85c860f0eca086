import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from tests.support.ball_run import SMALL, asset_manifest, ball, ball_run, export, export_error  # noqa: F401
from tests.support.errors import refused
from threedgen.export import task as export_run
from threedgen.export.asset import make_asset
from threedgen.export.options import AssetConfig
from threedgen.export.run_field import load_run_field
from threedgen.export.shape.from_field import FieldView, dense_surface, half_light_depth
from threedgen.export.shape.mesh import Mesh
from threedgen.run.metrics import read_summary


def test_export_prints_height_and_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ball_run(tmp_path / "run")
    capsys.readouterr()  # discard warnings from making the run
    assert export(run, "--quiet") == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"{run}/asset\n", "")
    assert export(run) == 0
    lines, height = capsys.readouterr().out.splitlines(), asset_manifest(run)["height"]
    assert lines[-1] == f"{run}/asset" and height in lines and height.startswith("0.22 m ") and "a ball" in height


def test_export_updates_the_run_summary(tmp_path: Path) -> None:
    run = ball_run(tmp_path / "run")
    notes = ["note about the prompt", "asset: the object is translucent", "no asset: out of memory"]
    before = {"status": "finished", "steps": 10, "files": ["asset/old.glb", "mesh.glb"], "notes": notes, "asset": {}}
    (run / "summary.json").write_text(json.dumps(before))
    assert export(run, f"out={tmp_path / 'other'}", "name=other") == 0
    assert read_summary(run) == before
    assert export(run, "lods=[]", "name=ball", "height=1.5") == 0
    assert not (run / "report.html").exists(), "only the run itself creates its page"
    after = read_summary(run)
    assert after["files"] == ["mesh.glb", "asset/ball.glb"] and after["notes"] == notes[:1]
    assert after["asset"]["file"] == "asset/ball.glb" and after["asset"]["levels"] == asset_manifest(run)["levels"]
    assert after["status"] == "finished" and after["steps"] == 10
    (run / "summary.json").write_text('{"files": 3, "notes": null}')
    (run / "report.html").write_text("earlier page")
    assert export(run, "name=null") == 0
    page = (run / "report.html").read_text()
    assert "a_ball_with_a_knob.glb" in page and "1.5 x" in page
    assert read_summary(run)["files"] == ["asset/a_ball_with_a_knob.glb"]


def ball_view(peak: float, radius: float = 0.5) -> FieldView:
    return FieldView(lambda x: peak * torch.sigmoid((radius - x.norm(dim=-1)) / 0.01), lambda x: 0 * x + 0.5, 1.0)


def test_translucent_field_gives_a_note_with_the_depth_and_full_field_is_refused() -> None:
    with refused(None, "100%"):
        dense_surface(ball_view(60, 2.0), 32)
    mesh, notes = dense_surface(ball_view(2), 32)
    exact = np.log(2) / 2  # the ball has diameter 1; its soft skin counts too, and the mesh is smaller
    assert exact < half_light_depth(mesh) < 2 * exact
    assert len(notes) == 1 and f"{half_light_depth(mesh):.0%}" in notes[0] and "loss.opaque" in notes[0]


def test_unfinished_run_gives_a_note(tmp_path: Path) -> None:
    source = load_run_field(ball_run(tmp_path / "run", "trainer.max_steps=50"))
    config = AssetConfig(budget=300, texture=256, lods=(), resolution=32, refine=0)
    (note,) = export_run.export(source, config, tmp_path / "asset").notes
    assert "10 of 50 steps" in note


def test_run_without_a_usable_field_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_error(capsys, "").startswith("run: ")
    assert export_error(capsys, tmp_path).startswith("run: ")
    run = ball_run(tmp_path / "run")
    checkpoint = run / "checkpoints/last.ckpt"
    checkpoint.write_bytes(b"PK\3\4 cut off")
    assert str(checkpoint) in export_error(capsys, run)
    checkpoint.unlink()
    assert f"python launch.py --resume {run}" in export_error(capsys, run)
    (run / "summary.json").write_text('{"status": "finished", "steps": 10}')  # a finished run cannot resume
    assert f"python launch.py --config {run}/config.yaml out=NEW" in export_error(capsys, run)
    other = ball_run(tmp_path / "other")
    (other / "config.yaml").write_text("task: sample\nprompt: a cow\n")
    error = export_error(capsys, other)
    assert "generate" in error and "'sample'" in error and not (other / "asset").exists()
    export_error(capsys, ball_run(tmp_path / "empty", p4=0.01), f"out={tmp_path / 'new'}")
    assert not list((tmp_path / "new").iterdir())


def test_file_instead_of_the_output_folder_is_refused(tmp_path: Path, capsys) -> None:
    run, file = ball_run(tmp_path / "run"), tmp_path / "file"
    file.write_text("")
    assert export_error(capsys, run, f"out={file}").startswith("out: ")


def test_missing_extras_are_refused_before_any_work(tmp_path: Path, capsys, monkeypatch) -> None:
    run = ball_run(tmp_path / "run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(export_run, "load_run_field", None)
    assert ".[usd]" in export_error(capsys, run, "formats=[usdz]")
    assert ".[parts]" in export_error(capsys, run, "collision=parts")


def test_impossible_budget_is_refused_or_replaced() -> None:
    """Sixty-four balls need at least four triangles each."""
    axis = np.linspace(-0.7, 0.7, 4)
    x, y, z = (c.reshape(-1) for c in np.meshgrid(axis, axis, axis))
    parts = [trimesh.creation.icosphere(1, 0.1).apply_translation(place) for place in zip(x, y, z, strict=True)]
    body = trimesh.util.concatenate(parts)
    surface = Mesh(
        np.asarray(body.vertices, np.float32),
        np.asarray(body.faces, np.int32),
        np.full((len(body.vertices), 3), 0.5, np.float32),
        np.asarray(body.vertex_normals, np.float32),
    )
    config = AssetConfig(budget=100, lods=(), texture=256)
    with refused("budget", 256, 100):
        make_asset(surface, config)
    asset = make_asset(surface, config, nearest_budget=True)
    assert asset.figures["levels"] == {"mesh": 256} and "256" in asset.notes[0]
