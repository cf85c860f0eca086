"""The task "export": the files of an asset, what they hold, and one clear sentence for everything that cannot be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from tests.support.ball_run import SMALL, ball_run, register, whole_state
from threedgen import cli
from threedgen.config import load, registry
from threedgen.config.errors import ConfigError
from threedgen.export import asset as assets
from threedgen.export import task as export_run
from threedgen.export.asset import ExportedAsset, make_asset
from threedgen.export.asset_folder import asset_name, clear
from threedgen.export.files.check import Finding
from threedgen.export.files.read_glb import read_glb
from threedgen.export.options import PRESETS, AssetConfig
from threedgen.export.run_field import open_run
from threedgen.export.shape.from_field import FieldView, FullField, border_share, dense_surface, half_depth
from threedgen.export.shape.opacity import EmptyField
from threedgen.export.shape.unwrap import UnwrapError
from threedgen.geometry.raster import shrink
from threedgen.representations.volume.occupancy import OccupancyGrid
from threedgen.run import folder as runs
from threedgen.run.metrics import read_summary
from threedgen.run.seeding import generator
from threedgen.train import checkpoint_file


@pytest.fixture(autouse=True)
def _ball(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The asset of a run, exported once."""
    folder = tmp_path_factory.mktemp("export") / "run"
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        ball_run(folder)
        words = ["--config", "export", f"run={folder}", *SMALL, "formats=[glb, obj]", "height=1.5"]
        assert cli.main(words) == 0
    return folder


def told(folder: Path) -> dict:
    return json.loads((folder / "asset" / "asset.json").read_text())


def export(run: Path, *words: str) -> int:
    return cli.main(["--config", "export", f"run={run}", *SMALL, *words])


# ---------------------------------------------------------------- what is made


def test_a_run_becomes_a_folder_of_files(made: Path) -> None:
    name = "a_ball_with_a_knob"
    summary = told(made)
    engines = [f"{name}_collision_{engine}.glb" for engine in ("unreal", "godot")]
    files = [f"{name}.glb", f"{name}_LOD1.glb", f"{name}_obj.zip", *engines]
    assert list(summary["files"]) == files and summary["name"] == name
    found = {path.name: path.stat().st_size for path in (made / "asset").iterdir()}
    assert found == summary["files"] | {"asset.json": (made / "asset/asset.json").stat().st_size}
    assert summary["levels"] == {name: 300, f"{name}_LOD1": 100} or summary["levels"][name] >= 285
    assert summary["findings"] == {file: [] for file in files if file.endswith(".glb")}
    assert summary["topology"]["open_edges"] == 0 and summary["topology"]["parts"] == 1
    assert {"surface", "simplify", "unwrap", "bake", "write", "check"} <= summary["seconds"].keys()
    assert summary["size_m"]["high"] == 1.5 and list(summary["size_m"]) == ["wide", "high", "deep"]
    assert summary["size_m"]["deep"] > 1.05 * summary["size_m"]["wide"], "the knob makes it deeper than wide"


def test_the_main_file_stands_upright_wears_its_colours_and_tells_its_story(made: Path) -> None:
    path = made / "asset" / "a_ball_with_a_knob.glb"
    glb = read_glb(path.read_bytes())
    place = glb.attributes["POSITION"]
    assert place[:, 1].min() == pytest.approx(0, abs=1e-5) and place[:, 1].max() == pytest.approx(1.5, abs=1e-4)
    provenance = glb.gltf_extras
    assert provenance["prompt"] == "a ball with a knob" and provenance["steps"] == 10 and provenance["seed"] == 0
    assert provenance["parts_kept"] == 1 and len(provenance["config_hash"]) == 64 and "version" in provenance
    (scene,) = trimesh.load(path, process=False).geometry.values()
    front = scene.vertices[scene.vertices[:, 2].argmax()]
    assert abs(front[0]) < 0.1, "the knob points along +z"
    colour = np.asarray(scene.visual.material.baseColorTexture.convert("RGB"))
    rows = ((1 - scene.visual.uv[:, 1]) * len(colour)).astype(int).clip(0, len(colour) - 1)
    columns = (scene.visual.uv[:, 0] * len(colour)).astype(int).clip(0, len(colour) - 1)
    worn = colour[rows, columns].astype(int)
    far = scene.vertices[:, 2] > 0.3 * scene.vertices[:, 2].max()
    assert (worn[far, 0] > 200).mean() > 0.95 and (worn[scene.vertices[:, 2] < -0.4][:, 2] > 200).mean() > 0.95


def test_levels_wear_the_same_textures_at_the_same_place_but_smaller(made: Path) -> None:
    fine, coarse = (read_glb((made / f"asset/a_ball_with_a_knob{end}.glb").read_bytes()) for end in ("", "_LOD1"))
    assert len(coarse.faces) <= 100
    for name, picture in fine.images.items():
        mean = shrink(picture[None].astype(float), len(picture) // len(coarse.images[name]))[0]
        assert np.abs(mean - coarse.images[name]).mean() < 1.5, name
    rows = {tuple(row) for row in np.column_stack([fine.attributes["POSITION"], fine.attributes["TEXCOORD_0"]])}
    assert rows >= {tuple(r) for r in np.column_stack([coarse.attributes["POSITION"], coarse.attributes["TEXCOORD_0"]])}


def test_the_same_run_gives_the_same_bytes_and_old_files_go(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "other"
    assert export(made, f"out={out}", "height=1.5") == 0
    for name in ("a_ball_with_a_knob.glb", "a_ball_with_a_knob_LOD1.glb"):
        assert (out / name).read_bytes() == (made / "asset" / name).read_bytes()
    (out / "mine.txt").write_text("not yours")
    assert export(made, f"out={out}", "lods=[]", "collision=none", "name=../x/../Hat é") == 0
    assert {path.name for path in out.iterdir()} == {"x_Hat.glb", "asset.json", "mine.txt"}
    assert not list(tmp_path.rglob("*.tmp"))


def test_only_files_that_an_export_wrote_are_removed(made: Path, tmp_path: Path) -> None:
    """Whatever an asset.json tells, and whoever wrote it."""
    mine = {"thesis.docx": b"mine", "mine.glb": b"glTF of mine", "../above.glb": b"mine"}
    out = tmp_path / "out"
    out.mkdir()
    for name, content in mine.items():
        (out / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in mine.items()}
    sums["mine.glb"] = sums["thesis.docx"]
    (out / "asset.json").write_text(json.dumps({"name": "mine", "files": dict.fromkeys(mine, 4), "sha256": sums}))
    assert export(made, f"out={out}", "lods=[]", "collision=none") == 0
    assert all((out / name).read_bytes() == content for name, content in mine.items())
    ours = out / "a_ball_with_a_knob.glb"
    ours.write_bytes(b"changed by me")
    assert export(made, f"out={out}", "lods=[]", "collision=none", "name=other") == 0
    assert ours.read_bytes() == b"changed by me" and (out / "other.glb").exists()


def test_a_file_that_is_not_as_an_export_left_it_is_not_overwritten(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert export(made, f"out={out}") == 0
    capsys.readouterr()
    edited, manifest = out / "a_ball_with_a_knob_LOD1.glb", out / "asset.json"
    as_written = edited.read_bytes()
    edited.write_bytes(b"painted for hours")
    with monkeypatch.context() as patch:
        patch.setattr(export_run, "open_run", None)  # it is said before any work
        said = refused(capsys, made, f"out={out}")
    assert said == f"out: {edited} is from no export or was changed since; move it, or choose another out=\n"
    with pytest.raises(ConfigError, match="LOD1.glb is from no export"):  # made while the export was at work
        export_run.save(ExportedAsset("a", {edited.name: b"new"}), out, AssetConfig())
    assert edited.read_bytes() == b"painted for hours"
    edited.write_bytes(as_written)
    manifest.write_text('{"name": "of another program"}')
    assert f"{out}/a_ball_with_a_knob.glb is from no export" in refused(capsys, made, f"out={out}")
    assert f"{manifest} is from no export" in refused(capsys, made, f"out={out}", "name=other")


def test_an_export_that_was_stopped_while_it_wrote_is_in_nobodys_way(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever files are in their place by then, the next one takes none of them for somebody else's."""
    replace = os.replace
    for last in range(4):
        out = tmp_path / str(last)
        assert export(made, f"out={out}", "height=2") == 0
        left = [last]

        def stops(source: Path, target: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(5, "stopped")
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stops)
            assert export(made, f"out={out}", "height=1.5") == 2
        assert export(made, f"out={out}", "height=1.5") == 0
        assert (out / "a_ball_with_a_knob.glb").read_bytes() == (made / "asset/a_ball_with_a_knob.glb").read_bytes()


def test_what_is_taken_away_is_what_an_export_wrote(made: Path, tmp_path: Path) -> None:
    assert export(made, f"out={tmp_path}") == 0
    mine = tmp_path / "a_ball_with_a_knob.glb"
    mine.write_bytes(b"changed by me")
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]
    mine.unlink()
    clear(tmp_path)
    assert not tmp_path.exists()


def test_the_names_of_the_files_are_known_before(made: Path) -> None:
    config = load("export", [f"run={made}", *SMALL, "formats=[glb, obj]"])
    assert config.file_names("a_ball_with_a_knob") == list(told(made)["files"])


@pytest.mark.parametrize(
    ("text", "name"),
    [("a blue dog", "a_blue_dog"), ("../../etc/passwd", "etc_passwd"), ("Hat-2", "Hat_2"), ("x" * 99, "x" * 40)],
)
def test_a_name_is_safe(text: str, name: str) -> None:
    assert asset_name(text) == name
    assert asset_name("猫") == asset_name("猫") != asset_name("犬") and asset_name("猫").isascii()


# ---------------------------------------------------------------- what is refused


def refused(capsys: pytest.CaptureFixture[str], run: object, *words: str) -> str:
    """The one sentence of an export that cannot be."""
    assert cli.main(["--config", "export", "--quiet", f"run={run}", *SMALL, *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    return said


def test_runs_that_cannot_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run: is missing" in refused(capsys, "")
    assert "run: should be the folder of a run" in refused(capsys, tmp_path)
    run = ball_run(tmp_path / "run")
    (run / "checkpoints/last.ckpt").unlink()
    assert "has no checkpoint" in refused(capsys, run)
    (run / "checkpoints/last.ckpt").write_bytes(b"PK\3\4 cut off")
    assert "damaged" in refused(capsys, run)
    (run / "checkpoints/last.ckpt").unlink()
    assert f"python launch.py --resume {run} makes one" in refused(capsys, run)
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


def test_a_budget_that_the_shape_does_not_allow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sixty balls need at least four triangles each."""
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


def test_what_is_not_given_is_as_the_run_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["export.preset=mobile", "export.budget=300", "export.lods=[100]", "export.refine=0"]
    run = ball_run(tmp_path / "run", *small, "export.resolution=40", "export.collision=none", "export.height=3")
    words = ["--config", "export", f"run={run}", "threads=1"]
    assert cli.main([*words, "texture=256", "collision=hull"]) == 0
    assert (told(run)["preset"], told(run)["texture"], len(told(run)["levels"])) == ("mobile", 256, 2)
    assert told(run)["size_m"]["high"] == pytest.approx(3) and list((run / "asset").glob("*collision*"))
    assert cli.main([*words, "budget=100"]) == 2
    assert "lods should each have 12 triangles or more" in capsys.readouterr().err


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


# ---------------------------------------------------------------- remarks about the field


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


def test_the_field_of_a_real_run_with_its_occupancy_grid(tmp_path: Path) -> None:
    """Its network, its grid and its colours come back as they were; a grid cell that is empty is not asked."""
    words = ["field.encoding.n_levels=2", "field.encoding.log2_hashmap_size=8", "field.density_blob_scale=20"]
    words += ["prompt=a blob", "occupancy.resolution=16", "trainer.max_steps=10", "march.samples=64"]
    config = load("mvdream-toybox", words)
    field = registry.build("representation", config.field, generator=generator(5, 0, "other"))
    grid = OccupancyGrid(config.occupancy, 1.0, 0.03)
    grid.binary[:, :, :8] = False
    state = {f"field.{name}": value for name, value in field.state_dict().items()}
    state |= {f"occupancy.{name}": value for name, value in grid.state_dict().items()}
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    runs.write_config(run, config)
    checkpoint_file.write(whole_state(state), run / "checkpoints" / "last.ckpt")
    source = open_run(run)
    x = torch.rand(50, 3) - 0.5
    assert torch.equal(source.view.density(x), field.density(x))
    assert np.allclose(source.view.colours(x.numpy()), torch.sigmoid(field(x)[1]).detach().numpy(), atol=1e-6)
    dense, _ = dense_surface(source.view, 40)
    assert dense.vertices[:, 2].min() > -0.2 and dense.vertices[:, 2].max() > 0.2
    asset = export_run.export(source, AssetConfig(budget=300, texture=128, lods=(), refine=2, resolution=40))
    assert asset.figures["refine"]["views"] == 2 and asset.figures["topology"]["open_edges"] == 0


# ---------------------------------------------------------------- presets


def test_a_preset_decides_what_is_not_given() -> None:
    page = (Path(__file__).parents[2] / "docs/export.md").read_text()
    for name, preset in PRESETS.items():
        levels = ", ".join(f"{count:,}" for count in preset.lods)
        assert re.search(rf"\| `{name}`.* \| {preset.budget:,} \| {levels} \| {preset.texture} \|\n", page)
        config = AssetConfig(preset=name)
        assert (config.triangles, config.texels, config.levels) == (preset.budget, preset.texture, preset.lods)
        for before, after in zip((preset.budget, *preset.lods), preset.lods, strict=False):
            assert after <= before / 2
    assert AssetConfig(preset="prop", budget=4000).levels == (1500,)
    config = load("export", ["run=x", "preset=mobile", "budget=2500", "formats=[glb,obj]", "lods=[500]"])
    assert (config.triangles, config.texels, config.levels, config.formats) == (2500, 512, (500,), ("glb", "obj"))


def test_without_a_collider_and_with_one_for_each_engine(made: Path) -> None:
    names = {}
    for engine in ("unreal", "godot"):
        tree = read_glb((made / f"asset/a_ball_with_a_knob_collision_{engine}.glb").read_bytes()).tree
        names[engine] = [node["name"] for node in tree["nodes"]]
    assert names == {"unreal": ["UCX_a_ball_with_a_knob_00"], "godot": ["a_ball_with_a_knob_00-convcolonly"]}
    assert dataclasses.is_dataclass(Finding)
