"""The asset that an export makes of a run: its files and what they hold, by which options, beside files of others."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from tests.support.ball_run import SMALL, ball, ball_run, export, refused, register, told, whole_state  # noqa: F401
from threedgen import cli
from threedgen.config import load, registry
from threedgen.config.errors import ConfigError
from threedgen.export import task as export_run
from threedgen.export.asset import ExportedAsset
from threedgen.export.asset_folder import asset_name, clear
from threedgen.export.files.read_glb import read_glb
from threedgen.export.options import PRESETS, AssetConfig
from threedgen.export.run_field import open_run
from threedgen.export.shape.from_field import dense_surface
from threedgen.geometry.raster import shrink
from threedgen.representations.volume.occupancy import OccupancyGrid
from threedgen.run import folder as runs
from threedgen.run.seeding import generator
from threedgen.train import checkpoint_file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The asset of a run, exported once."""
    folder = tmp_path_factory.mktemp("export") / "run"
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        ball_run(folder)
        assert export(folder, "formats=[glb, obj]", "height=1.5") == 0
    return folder


# ---------------------------------------------------------------- the files


def test_a_run_becomes_a_folder_of_files(made: Path) -> None:
    name = "a_ball_with_a_knob"
    summary = told(made)
    engines = [f"{name}_collision_{engine}.glb" for engine in ("unreal", "godot")]
    files = [f"{name}.glb", f"{name}_LOD1.glb", f"{name}_obj.zip", *engines]
    assert list(summary["files"]) == files and summary["name"] == name
    found = {path.name: path.stat().st_size for path in (made / "asset").iterdir()}
    assert found == summary["files"] | {"asset.json": (made / "asset/asset.json").stat().st_size}
    assert list(summary["levels"]) == [name, f"{name}_LOD1"] and 285 <= summary["levels"][name] <= 300
    assert summary["findings"] == {file: [] for file in files if file.endswith(".glb")}
    assert summary["topology"]["open_edges"] == 0 and summary["topology"]["parts"] == 1
    assert {"surface", "simplify", "unwrap", "bake", "write", "check"} <= summary["seconds"].keys()
    assert summary["size_m"]["high"] == 1.5 and list(summary["size_m"]) == ["wide", "high", "deep"]
    assert summary["size_m"]["deep"] > 1.05 * summary["size_m"]["wide"], "the knob makes it deeper than wide"


def test_the_names_of_the_files_are_known_before(made: Path) -> None:
    config = load("export", [f"run={made}", *SMALL, "formats=[glb, obj]"])
    assert config.file_names("a_ball_with_a_knob") == list(told(made)["files"])


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


def test_a_collider_is_named_as_each_engine_wants_it(made: Path) -> None:
    names = {}
    for engine in ("unreal", "godot"):
        tree = read_glb((made / f"asset/a_ball_with_a_knob_collision_{engine}.glb").read_bytes()).tree
        names[engine] = [node["name"] for node in tree["nodes"]]
    assert names == {"unreal": ["UCX_a_ball_with_a_knob_00"], "godot": ["a_ball_with_a_knob_00-convcolonly"]}


@pytest.mark.parametrize(
    ("text", "name"),
    [("a blue dog", "a_blue_dog"), ("../../etc/passwd", "etc_passwd"), ("Hat-2", "Hat_2"), ("x" * 99, "x" * 40)],
)
def test_a_name_is_safe(text: str, name: str) -> None:
    assert asset_name(text) == name


def test_texts_without_latin_letters_have_names_of_their_own() -> None:
    assert asset_name("猫") != asset_name("犬") and asset_name("猫").isascii()


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


# ---------------------------------------------------------------- options


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


def test_what_is_not_given_is_as_the_run_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["export.preset=mobile", "export.budget=300", "export.lods=[100]", "export.refine=0"]
    run = ball_run(tmp_path / "run", *small, "export.resolution=40", "export.collision=none", "export.height=3")
    words = ["--config", "export", f"run={run}", "threads=1"]
    assert cli.main([*words, "texture=256", "collision=hull"]) == 0
    assert (told(run)["preset"], told(run)["texture"], len(told(run)["levels"])) == ("mobile", 256, 2)
    assert told(run)["size_m"]["high"] == pytest.approx(3) and list((run / "asset").glob("*collision*"))
    assert cli.main([*words, "budget=100"]) == 2
    assert "lods should each have 12 triangles or more" in capsys.readouterr().err


# ---------------------------------------------------------------- files that are there before


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
