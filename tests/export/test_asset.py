import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from benchmarks.glb_check import Expected, check_glb
from benchmarks.glb_reader import read_glb
from tests.support.ball_run import SMALL, asset_manifest, ball, ball_run, export, export_error, register, whole_state  # noqa: F401
from tests.support.errors import refused
from threedgen import cli
from threedgen.config import load, registry
from threedgen.export import task as export_run
from threedgen.export.asset import ExportedAsset
from threedgen.export.asset_folder import asset_name, write_files
from threedgen.export.options import PRESETS, AssetConfig, material_of
from threedgen.export.renders import spiral_cameras
from threedgen.export.run_field import load_field, load_run_field
from threedgen.export.shape.from_field import dense_surface
from threedgen.geometry.raster import box_downsample
from threedgen.representations.field.ngp import NGP
from threedgen.representations.volume.render import OccupancyGrid
from threedgen.run import folder as runs
from threedgen.run.seeding import generator
from threedgen.studio.schema import AssetOrder
from threedgen.train import checkpoint_file


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        ball_run(folder)
        assert export(folder, "formats=[glb, obj]", "height=1.5") == 0
    return folder


def test_export_writes_files_and_manifest(exported: Path) -> None:
    name = "a_ball_with_a_knob"
    manifest = asset_manifest(exported)
    engines = [f"{name}_collision_{engine}.glb" for engine in ("unreal", "godot")]
    files = [f"{name}.glb", f"{name}_LOD1.glb", f"{name}_obj.zip", *engines]
    assert list(manifest["files"]) == files and manifest["name"] == name
    trees = [read_glb((exported / "asset" / file).read_bytes()).tree for file in files[-2:]]
    assert [tree["nodes"][0]["name"] for tree in trees] == [f"UCX_{name}_00", f"{name}_00-convcolonly"]
    assert all(len(tree["nodes"]) == 1 and "materials" not in tree for tree in trees)
    config = load("export", [f"run={exported}", *SMALL, "formats=[glb, obj]"])
    assert config.file_names(name) == files
    sizes = {path.name: path.stat().st_size for path in (exported / "asset").iterdir()}
    assert sizes == manifest["files"] | {"asset.json": (exported / "asset/asset.json").stat().st_size}
    assert list(manifest["levels"]) == [name, f"{name}_LOD1"] and 285 <= manifest["levels"][name] <= 300
    for title, expected in ((name, Expected(300, height=1.5)), (f"{name}_LOD1", Expected(100, layout=False))):
        assert check_glb((exported / f"asset/{title}.glb").read_bytes(), expected) == []
    assert manifest["topology"]["open_edges"] == 0 and manifest["topology"]["parts"] == 1
    assert {"surface", "simplify", "unwrap", "bake", "write"} <= manifest["seconds"].keys()
    assert "refine" not in manifest
    assert manifest["size_m"]["high"] == 1.5 and list(manifest["size_m"]) == ["wide", "high", "deep"]
    assert manifest["size_m"]["deep"] > 1.05 * manifest["size_m"]["wide"], "the knob makes it deeper than wide"


def test_glb_is_upright_coloured_and_has_provenance(exported: Path) -> None:
    path = exported / "asset" / "a_ball_with_a_knob.glb"
    glb = read_glb(path.read_bytes())
    y = glb.attributes["POSITION"][:, 1]
    assert y.min() == pytest.approx(0, abs=1e-5) and y.max() == pytest.approx(1.5, abs=1e-4)
    provenance = glb.gltf_extras
    assert provenance["prompt"] == "a ball with a knob" and provenance["steps"] == 10 and provenance["seed"] == 0
    assert provenance["parts_kept"] == 1 and len(provenance["config_hash"]) == 64 and "version" in provenance
    (scene,) = trimesh.load(path, process=False).geometry.values()
    front = scene.vertices[scene.vertices[:, 2].argmax()]
    assert abs(front[0]) < 0.1, "the knob points along +z"
    image = np.asarray(scene.visual.material.baseColorTexture.convert("RGB"))
    rows = ((1 - scene.visual.uv[:, 1]) * len(image)).astype(int).clip(0, len(image) - 1)
    columns = (scene.visual.uv[:, 0] * len(image)).astype(int).clip(0, len(image) - 1)
    colours = image[rows, columns].astype(int)
    far = scene.vertices[:, 2] > 0.3 * scene.vertices[:, 2].max()
    assert (colours[far, 0] > 200).mean() > 0.95 and (colours[scene.vertices[:, 2] < -0.4][:, 2] > 200).mean() > 0.95


def test_levels_of_detail_share_smaller_textures(exported: Path) -> None:
    fine, coarse = (read_glb((exported / f"asset/a_ball_with_a_knob{end}.glb").read_bytes()) for end in ("", "_LOD1"))
    assert len(coarse.faces) <= 100
    for name, image in fine.images.items():
        mean = box_downsample(image[None].astype(float), len(image) // len(coarse.images[name]))[0]
        assert np.abs(mean - coarse.images[name]).mean() < 1.5, name
    rows = {tuple(row) for row in np.column_stack([fine.attributes["POSITION"], fine.attributes["TEXCOORD_0"]])}
    assert rows >= {tuple(r) for r in np.column_stack([coarse.attributes["POSITION"], coarse.attributes["TEXCOORD_0"]])}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a blue dog", "a_blue_dog"),
        ("../../etc/passwd", "etc_passwd"),
        ("x" * 99, "x" * 40),
        ("a ferris wheel", "a_ferris_wheel_asset"),
        ("a wheelbarrow", "a_wheelbarrow"),
    ],
)
def test_asset_name_is_a_safe_file_name(text: str, name: str) -> None:
    assert asset_name(text) == name
    assert asset_name("猫") != asset_name("犬") and asset_name("猫").isascii()


def test_load_run_field_restores_field_and_occupancy_grid(tmp_path: Path, monkeypatch) -> None:
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
    monkeypatch.setattr(NGP, "before_step", lambda field, *steps: setattr(field, "prepared", steps))
    source = load_run_field(run)
    assert load_field(run)[1].prepared == (9, 10), "values that before_step schedules"
    x = torch.rand(50, 3) - 0.5
    assert torch.equal(source.view.density(x), field.density(x))
    assert np.allclose(source.view.colours(x.numpy()), torch.sigmoid(field(x)[1]).detach().numpy(), atol=1e-6)
    dense, _ = dense_surface(source.view, 40)
    assert dense.vertices[:, 2].min() > -0.2 and dense.vertices[:, 2].max() > 0.2, "empty cells are not queried"


def test_load_run_field_colours_by_the_material_of_the_run(tmp_path: Path) -> None:
    view = load_run_field(ball_run(tmp_path / "run", "material.name=negative")).view
    front, back = np.array([[0.5, -0.1, 0.1], [-0.1, -0.1, 0.1]], np.float32)
    assert view.colours(np.stack([front, back])).round().tolist() == [[0, 1, 1], [1, 1, 0]]
    rgb, opacity = view.renderer(spiral_cameras(3, 24))
    assert rgb[opacity > 0.95][:, 1].min() > 0.95


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("", "matte"), ("A shiny red car", "shiny"), ("an iron pot", "metal"), ("a steelworker", "matte"),
        ("a glass bottle with a metal cap", "glass"), ("a robot not made of metal", "matte"),
        ("a metal-free robot", "matte"), ("a chrome-plated robot", "metal"), ("a car under a metal bridge", "matte"),
        ("a toy car made out of metal", "metal"), ("a red and shiny car", "shiny"), ("a dog and a shiny car", "matte"),
    ],
)  # fmt: skip
def test_prompt_sets_the_material(prompt: str, name: str) -> None:
    assert material_of(prompt) == name


def test_levels_of_detail_of_a_preset_are_left_out_above_half_the_budget() -> None:
    assert AssetConfig(preset="prop").sizes == PRESETS["prop"]
    assert AssetConfig(preset="prop", budget=4000).sizes.lods == (1500,)


def test_levels_of_detail_are_compared_with_the_budget_of_the_run(tmp_path: Path) -> None:
    levels = "lods=[10000, 3000]"
    runs.write_config(tmp_path, load("mvdream-toybox", ["prompt=a dog", "export.preset=character"]))
    assert load("export", [f"run={tmp_path}", levels]).asset().sizes[:3] == (30_000, 2048, (10_000, 3000))
    assert AssetOrder(lods=(10_000, 3000)).lods == (10_000, 3000)
    with refused(None, "lods"):
        load("export", [f"run={tmp_path}", "preset=prop", levels]).asset()
    with refused(None, "lods"):
        load("export", [f"run={tmp_path}", "budget=15000", levels])


def test_unset_options_come_from_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["export.preset=mobile", "export.budget=300", "export.lods=[100]", "export.refine=0"]
    run = ball_run(tmp_path / "run", *small, "export.resolution=40", "export.collision=none", "export.height=3")
    words = ["--config", "export", f"run={run}"]
    assert cli.main([*words, "texture=256", "collision=hull"]) == 0
    manifest = asset_manifest(run)
    assert (manifest["preset"], manifest["texture"], len(manifest["levels"])) == ("mobile", 256, 2)
    assert manifest["size_m"]["high"] == pytest.approx(3) and list((run / "asset").glob("*collision*"))
    assert cli.main([*words, "budget=100"]) == 2
    assert "lods" in capsys.readouterr().err


def test_unset_options_come_from_the_earlier_export_or_a_new_preset(tmp_path: Path) -> None:
    run, other = ball_run(tmp_path / "run", "export.budget=2000", "export.height=3"), tmp_path / "other"

    def asset(*words: str) -> AssetConfig:
        return load("export", [f"run={run}", *words]).asset()

    assert export(run, "palette=teal", "formats=[glb, obj]", "name=Hero") == 0
    found = asset("collision=none", "budget=400")
    assert (found.palette, found.formats, found.name, found.height) == ("#008080", ("glb", "obj"), "Hero", 3)
    assert found.sizes == (400, 256, (100,), 40) and asset("height=null").height is None
    assert asset("preset=hero", "texture=64").sizes == PRESETS["hero"]._replace(texture=64)
    found = asset(f"out={other}")
    assert (found.palette, found.budget) == (None, 2000), "another folder has no earlier export"
    assert export(run, f"out={other}", "palette=red", "height=null") == 0
    assert asset(f"out={other}").palette == "#ff0000" and asset().palette == "#008080"


def test_export_is_deterministic_and_replaces_earlier_files(exported: Path, tmp_path: Path, caplog) -> None:
    out = tmp_path / "other"
    assert export(exported, f"out={out}", "height=1.5") == 0
    for name in ("a_ball_with_a_knob.glb", "a_ball_with_a_knob_LOD1.glb"):
        assert (out / name).read_bytes() == (exported / "asset" / name).read_bytes()
    (out / "user.txt").write_text("user")
    assert "'a_ball_with_a_knob'" not in caplog.text
    assert export(exported, f"out={out}", "lods=[]", "collision=none", "name=../x/../Hat é") == 0
    assert {path.name for path in out.iterdir()} == {"x_Hat.glb", "asset.json", "user.txt"}
    assert "'a_ball_with_a_knob'" in caplog.text, "the name of the asset that was replaced"
    assert not list(tmp_path.rglob("*.tmp"))


def test_export_keeps_the_asset_of_another_run(exported: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    run, out = ball_run(tmp_path / "runs" / "cat", "prompt=a cat"), tmp_path / "models"
    assert export(exported, f"out={out}") == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(export_run, "load_run_field", None)  # refused before any work
        error = export_error(capsys, run, f"out={out}")
    assert error.startswith("out: ") and f"{exported.parent.name}/run" in error
    with refused("out", out):  # asset of another run written during the export
        export_run.save(ExportedAsset("a", {"a.glb": b"new"}), out, AssetConfig(), "runs/cat")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    manifest = json.loads(before["asset.json"])
    del manifest["run"]  # of an older version
    (out / "asset.json").write_text(json.dumps(manifest))
    assert export(run, f"out={out}", "lods=[]", "collision=none") == 0
    assert {path.name for path in out.iterdir()} == {"a_cat.glb", "asset.json"}
    assert asset_manifest(exported).get("run") is None and export(run) == 0


def test_export_keeps_user_files_listed_in_a_forged_manifest(exported: Path, tmp_path: Path) -> None:
    user_files = {"thesis.docx": b"user", "user.glb": b"glTF of the user", "../above.glb": b"user"}
    out = tmp_path / "out"
    out.mkdir()
    for name, content in user_files.items():
        (out / name).write_bytes(content)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in user_files.items()}
    sums["user.glb"] = sums["thesis.docx"]
    (out / "asset.json").write_text(json.dumps({"name": "x", "files": dict.fromkeys(user_files, 4), "sha256": sums}))
    assert export(exported, f"out={out}", "lods=[]", "collision=none") == 0
    assert all((out / name).read_bytes() == content for name, content in user_files.items())


def test_export_refuses_to_overwrite_changed_files(exported: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    assert export(exported, f"out={out}") == 0
    capsys.readouterr()
    edited, manifest = out / "a_ball_with_a_knob_LOD1.glb", out / "asset.json"
    original = edited.read_bytes()
    edited.write_bytes(b"user")
    with monkeypatch.context() as patch:
        patch.setattr(export_run, "load_run_field", None)  # refused before any work
        assert export_error(capsys, exported, f"out={out}").startswith(f"out: {edited} ")
    with refused("out", edited):  # file changed during the export
        export_run.save(ExportedAsset("a", {edited.name: b"new"}), out, AssetConfig())
    assert edited.read_bytes() == b"user"
    edited.write_bytes(original)
    manifest.write_text('{"name": "of another program"}')
    assert f"{out}/a_ball_with_a_knob.glb " in export_error(capsys, exported, f"out={out}")
    assert f"{manifest} " in export_error(capsys, exported, f"out={out}", "name=other")


def test_interrupted_write_does_not_block_the_next_export(exported: Path, tmp_path: Path, monkeypatch) -> None:
    replace = os.replace
    for renames in range(3):  # of asset.json, then of two levels of detail
        out = tmp_path / str(renames)
        assert export(exported, f"out={out}", "collision=none", "height=2") == 0
        left = [renames]

        def fail(source: Path, target: Path, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(5, "stopped")
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            assert export(exported, f"out={out}", "collision=none", "height=1.5") == 2
        assert export(exported, f"out={out}", "collision=none", "height=1.5") == 0
        assert (out / "a_ball_with_a_knob.glb").read_bytes() == (exported / "asset/a_ball_with_a_knob.glb").read_bytes()


def test_write_files_full_disk_keeps_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full at the sync of any file, the manifest included, loses nothing of the earlier export."""

    def manifest(files: dict[str, bytes]) -> dict[str, object]:
        return {"files": list(files), "sha256": {n: hashlib.sha256(b).hexdigest() for n, b in files.items()}}

    old, new = {"a.glb": b"old", "b.glb": b"old"}, {"a.glb": b"new", "c.glb": b"new"}
    write_files(tmp_path, old, manifest(old))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fsync = os.fsync
    for allowed in range(len(new) + 1):
        calls = iter(range(allowed))

        def full(descriptor: int, calls: Iterator[int] = calls) -> None:
            if next(calls, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(descriptor)

        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr(os, "fsync", full)
            write_files(tmp_path, new, manifest(new))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
