"""What an export says: where it works, remarks about the object, one clear sentence for everything that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from tests.support.ball_run import SMALL, ball, ball_run, export, refused, told  # noqa: F401
from threedgen.config.errors import ConfigError
from threedgen.export import asset as assets
from threedgen.export import task as export_run
from threedgen.export.asset import make_asset
from threedgen.export.files.check import Finding
from threedgen.export.options import AssetConfig
from threedgen.export.run_field import open_run
from threedgen.export.shape.from_field import FieldView, FullField, border_share, dense_surface, half_depth
from threedgen.export.shape.opacity import EmptyField
from threedgen.export.shape.unwrap import UnwrapError
from threedgen.run.metrics import read_summary

# ---------------------------------------------------------------- what is said


def test_an_export_says_where_it_works_and_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ball_run(tmp_path / "run")
    assert export(run, "--quiet") == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == (f"{run}/asset\n", "")
    assert export(run) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[:2] == [f"export in {run}/asset", "loading the libraries"] and lines[-1] == f"{run}/asset"
    assert "asset: surface: 0/12" in said.err and "12/12" in said.err


def test_the_height_is_told_with_one_command_that_can_be_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ball_run(tmp_path / "run")
    assert export(run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "0.22 m high, as a ball usually is" in lines and told(run)["height"] == "0.22 m high, as a ball usually is"
    assert f"another height: python launch.py --config export run={run} preset=prop height=METRES" in lines
    assert export(run, "height=1000000") == 0
    said = capsys.readouterr().out
    assert "\n1,000,000 m high\n" in said and "another height" not in said and "height" not in told(run)


def test_the_summary_of_a_run_tells_of_the_asset_that_it_has_now(tmp_path: Path) -> None:
    run = ball_run(tmp_path / "run")
    assert export(run, "lods=[]") == 0
    assert not (run / "summary.json").exists(), "nobody says of a run that it is finished but the run"
    notes = ["the prior knows no knob", "asset: the object is translucent", "no asset: stopped by Ctrl-C"]
    before = {"status": "finished", "steps": 10, "files": ["asset/old.glb", "mesh.glb"], "notes": notes, "asset": {}}
    (run / "summary.json").write_text(json.dumps(before))
    assert export(run, f"out={tmp_path / 'other'}", "name=other") == 0
    assert read_summary(run) == before
    assert export(run, "lods=[]", "name=ball", "height=1.5") == 0
    now = read_summary(run)
    assert now["files"] == ["mesh.glb", "asset/ball.glb"] and now["notes"] == notes[:1]
    assert now["asset"]["file"] == "asset/ball.glb" and now["asset"]["levels"] == told(run)["levels"]
    assert now["status"] == "finished" and now["steps"] == 10
    (run / "summary.json").write_text('{"files": 3, "notes": null}')
    assert export(run, "lods=[]") == 0 and read_summary(run)["files"] == ["asset/a_ball_with_a_knob.glb"]


# ---------------------------------------------------------------- remarks about the object


def ball_view(peak: float, radius: float = 0.5) -> FieldView:
    return FieldView(lambda x: peak * torch.sigmoid((radius - x.norm(dim=-1)) / 0.01), lambda x: 0 * x + 0.5, 1.0)


def test_a_translucent_field_is_told_with_the_figure() -> None:
    _, notes = dense_surface(ball_view(60), 32)
    assert notes == []
    mesh, notes = dense_surface(ball_view(2), 32)
    exact = np.log(2) / 2  # the ball is 1 across, but its skin counts, and what is seen of it is smaller
    assert exact < half_depth(mesh) < 2 * exact
    assert "translucent" in notes[0] and f"{half_depth(mesh):.0%}" in notes[0]


def test_the_border_of_the_world_is_seen() -> None:
    mesh, _ = dense_surface(ball_view(60), 32)
    assert border_share(mesh, 1.0, 2 / 31) == 0
    with pytest.raises(FullField, match=r"fills all of its space \(100% of its surface"):
        dense_surface(ball_view(60, 2.0), 32)
    with pytest.raises(EmptyField):
        dense_surface(ball_view(0), 32)


def test_a_level_that_cannot_be_as_coarse_as_asked_says_so_and_works() -> None:
    dense, _ = dense_surface(ball_view(60), 40)
    asset = make_asset(dense, AssetConfig(budget=2000, texture=128, lods=(12,), collision="none", refine=0))
    (note,) = asset.notes
    left = asset.figures["levels"]["mesh_LOD1"]
    assert note.startswith(f"level of detail 1 has {left} triangles instead of 12: ") and "leave it out of lods" in note
    assert left > 12 and not asset.faults and "mesh_LOD1.glb" in asset.files


def test_an_unfinished_run_is_exported_with_a_note(tmp_path: Path) -> None:
    source = open_run(ball_run(tmp_path / "run", "trainer.max_steps=50"))
    config = AssetConfig(budget=300, texture=256, lods=(), resolution=32, refine=0)
    assert export_run.export(source, config).notes == ["the run is not finished: 10 of 50 steps"]


# ---------------------------------------------------------------- what is refused


def test_runs_that_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run: is missing" in refused(capsys, "")
    assert "run: should be the folder of a run" in refused(capsys, tmp_path)
    run = ball_run(tmp_path / "run")
    (run / "checkpoints/last.ckpt").write_bytes(b"PK\3\4 cut off")
    assert "damaged" in refused(capsys, run)
    (run / "checkpoints/last.ckpt").unlink()
    said = refused(capsys, run)
    assert "has no checkpoint" in said and f"python launch.py --resume {run} makes one" in said
    (run / "summary.json").write_text('{"status": "finished", "steps": 10}')  # of such a run --resume makes nothing
    assert f"python launch.py --config {run}/config.yaml out=NEW does the run again" in refused(capsys, run)
    other = ball_run(tmp_path / "other")
    (other / "config.yaml").write_text("task: sample\nprompt: a cow\n")
    assert "of the task generate, not of 'sample'" in refused(capsys, other)
    assert not (other / "asset").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["budget=3"], "budget"),
        (["texture=1000"], "try 512"),
        (["lods=[200]"], "lods"),
        (["lods=[100, 90]"], "lods"),
        (["formats=[fbx]"], "formats"),
        (["formats=[]"], "formats"),
        (["formats=glb,obj"], "formats: should be a list such as [glb, obj] (got 'glb,obj')"),
        (["lods=1000"], "lods: should be a list such as [1000] (got 1000)"),
        (["lods=many"], "lods: should be a list such as [1000, 300] (got 'many')"),
        (["collision=box"], "collision"),
        (["preset=huge"], "preset"),
        (["height=-1"], "height"),
        (["out={file}"], "out: should be a folder"),
    ],
)
def test_options_that_make_no_sense(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ball_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    words = [word.format(file=tmp_path / "file") for word in words]
    assert said in refused(capsys, run, *words)


def test_extras_that_are_not_installed_are_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ball_run(tmp_path / "run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(export_run, "open_run", None)
    assert ".[usd]" in refused(capsys, run, "formats=[usdz]")
    assert ".[parts]" in refused(capsys, run, "collision=parts")


def test_fields_without_an_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing solid came out" in refused(capsys, ball_run(tmp_path / "empty", p4=0.01))
    assert "fills all of its space (" in refused(capsys, ball_run(tmp_path / "full", p3=3.0))
    assert not (tmp_path / "empty/asset").exists() and not (tmp_path / "full/asset").exists()


def test_a_budget_that_the_shape_does_not_allow() -> None:
    """Sixty-four balls need at least four triangles each."""
    axis = np.linspace(-0.7, 0.7, 4)
    x, y, z = (c.reshape(-1) for c in np.meshgrid(axis, axis, axis))
    parts = [trimesh.creation.icosphere(1, 0.1).apply_translation(place) for place in zip(x, y, z, strict=True)]
    body = trimesh.util.concatenate(parts)
    surface = assets.Mesh(
        np.asarray(body.vertices, np.float32),
        np.asarray(body.faces, np.int32),
        np.full((len(body.vertices), 3), 0.5, np.float32),
        np.asarray(body.vertex_normals, np.float32),
    )
    config = AssetConfig(budget=100, lods=(), texture=256)
    with pytest.raises(ConfigError, match=r"^budget: should be at least 256 triangles for this shape \(got 100\)$"):
        make_asset(surface, config)
    asset = make_asset(surface, config, nearest_budget=True)
    assert asset.figures["levels"] == {"mesh": 256} and "needs 256 triangles" in asset.notes[0]


def test_xatlas_failing_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise UnwrapError("the surface could not be unwrapped; try another budget")

    monkeypatch.setattr(assets, "unwrap", fail)
    assert "could not be unwrapped" in refused(capsys, ball_run(tmp_path / "run"))


def test_strict_fails_and_writes_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = ball_run(tmp_path / "run")
    monkeypatch.setattr(assets, "check_glb", lambda data, expected: [Finding("warning", "size", "too large")])
    assert "strict: the asset was not written: a_ball_with_a_knob.glb: too large" in refused(capsys, run, "strict=true")
    assert not (run / "asset").exists()
    assert export(run) == 0 and "a_ball_with_a_knob.glb: too large" in caplog.text
    assert told(run)["findings"]["a_ball_with_a_knob.glb"][0]["code"] == "size"


@pytest.mark.parametrize("there", [False, True])
def test_a_failed_export_leaves_no_folder_that_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    run, out = ball_run(tmp_path / "run", p4=0.01), tmp_path / "new/deep"
    if there:
        out.mkdir(parents=True)
    refused(capsys, run, f"out={out}")
    assert out.exists() == out.parent.exists() == there
