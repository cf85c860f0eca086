"""The task "texture-object": meshes of all kinds wear pictures of their six sides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from tests.support import box_room, command
from tests.support.example_run import Page, decoded
from tests.support.task_server import write_config
from tests.support.tiny_mvadapter import GEOMETRY, tiny_prior_config
from threedgen import cli
from threedgen.config import ConfigError
from threedgen.export.files.check import Expected, check_glb
from threedgen.geometry.images import write_png
from threedgen.run.arrays import Array
from threedgen.systems.texture.scene import SceneMesh
from threedgen.systems.texture_object.mesh import SIDES, control_maps, coordinates, preview, read_thing, six_sides
from threedgen.systems.texture_object.options import TextureObjectConfig

OURS_TO_GLTF = [1, 2, 0]


def thing() -> trimesh.Trimesh:
    """A long box with a nose that faces +x, in our axes; largest coordinate 0.5."""
    body = trimesh.creation.box((0.8, 0.5, 0.4))
    nose = trimesh.creation.box((0.2, 0.2, 0.2))
    body.apply_translation([-0.1, 0, 0])
    nose.apply_translation([0.4, 0, 0.1])
    return trimesh.util.concatenate([body, nose])


def write_mesh(path: Path, mesh: trimesh.Trimesh | None = None, axes: Array | None = None) -> Path:
    """``axes``: rows are what the file's x, y and z are in our axes; glTF's else. Three times as large, beside 0."""
    made = (mesh or thing()).copy()
    rows = np.eye(3)[OURS_TO_GLTF] if axes is None else axes
    made.vertices = 3 * made.vertices @ rows.T + [1, 2, 0]
    made.export(path)
    return path


def config(path: Path, **values: object) -> TextureObjectConfig:
    return TextureObjectConfig.model_validate({"task": "texture-object", "mesh": str(path), "texture": 128, **values})


def write_views(folder: Path, size: int = 64) -> Array:
    mesh = SceneMesh(np.asarray(thing().vertices, np.float32), np.asarray(thing().faces))
    views = box_room.truth(mesh, six_sides(size))
    for side, view in zip(SIDES, views, strict=True):
        write_png(folder / f"{side}.png", view)
    return views


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    write_config(Path("views.yaml"), {"task": "texture-object", "threads": 1, "texture": 128, "size": 64})
    return command.ask(capsys, "--config", "views.yaml", *words)


def test_a_mesh_without_uv_wears_its_views(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mesh(tmp_path / "a.glb")
    code, out, err = run(capsys, "mesh=a.glb", "out=bare")
    assert code == 0 and out.splitlines()[-1] == str(Path("bare", "preview.png")), err
    assert len(list(Path("bare", "maps").rglob("*.png"))) == 12
    write_views(tmp_path / "sides")
    code, out, err = run(capsys, "mesh=a.glb", "views=sides", "out=run")
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "textured.glb")), err
    summary = json.loads(Path("run", "summary.json").read_text())
    assert summary["psnr_of_views"] > 28 and summary["texels_seen"] > 0.7
    data = Path("run", "textured.glb").read_bytes()
    assert not [found for found in check_glb(data, Expected(24, 128, scene=True)) if found.severity == "error"]
    page = Page(Path("run", "report.html").read_text(encoding="utf-8"))
    shown = {given["alt"]: decoded(given["src"]) for tag, given in page.attributes if tag == "img"}
    files = {"Before": "before", "After": "after", "Mesh": "preview", "Pictures": "views", "Texture": "texture"}
    assert shown == {label: Path("run", f"{name}.png").read_bytes() for label, name in files.items()}
    assert page.decoded("mesh") == data and page.texts["h1"] == ["a"]
    assert shown["Before"] != shown["After"]
    found = trimesh.load(tmp_path / "run" / "textured.glb", process=False, force="mesh")
    np.testing.assert_allclose(found.bounds, trimesh.load(tmp_path / "a.glb", force="mesh").bounds, atol=1e-5)
    write_png(tmp_path / "sides" / "top.png", np.zeros((32, 64, 3)))
    code, _, err = run(capsys, "mesh=a.glb", "views=sides", "out=bad")
    assert code == 2 and "square and of one size" in err and "top 64 x 32" in err
    (tmp_path / "sides" / "top.png").rename(tmp_path / "sides" / "topp.png")
    code, _, err = run(capsys, "mesh=a.glb", "views=sides", "out=bad")
    assert code == 2 and "has no top.png (is it topp.png?)" in err


def test_a_mesh_wears_what_is_drawn_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sides are drawn once: a run that lost its mesh makes it again from the same, and so does one that is given
    them."""
    monkeypatch.chdir(tmp_path)
    write_mesh(tmp_path / "a.glb")
    prior = tiny_prior_config(tmp_path / "prior", GEOMETRY)
    words = ["mesh=a.glb", *(f"prior.{name}={value}" for name, value in prior.items()), "steps=2"]
    code, out, err = run(capsys, *words, "prompt=a red dog", "synchronise=2", "out=run")
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "textured.glb")), err
    assert {path.stem for path in Path("run", "views").iterdir()} == set(SIDES)
    first, kept = Path("run", "texture.png").read_bytes(), Path("run", "views.safetensors")
    drawn_at = kept.stat().st_mtime_ns
    Path("run", "textured.glb").unlink()
    assert cli.main(["--resume", "run"]) == 0
    assert kept.stat().st_mtime_ns == drawn_at and Path("run", "texture.png").read_bytes() == first
    capsys.readouterr()
    assert run(capsys, "mesh=a.glb", "views=run/views", "out=given")[0] == 0
    code, _, err = run(capsys, *words, "prompt=a red dog", "views=run/views", "out=both")
    assert code == 2 and "views: are given, and there is a prompt" in err
    code, _, err = run(capsys, "mesh=a.glb", "prompt=a red dog", "out=nobody")
    assert code == 2 and "prior.adapter: there is none" in err


def test_transparent_pixels_are_not_the_thing(tmp_path: Path) -> None:
    from threedgen.systems.texture_object.views import read_sides

    write_views(tmp_path, 16)
    Image.fromarray(np.full((16, 16, 4), 128, np.uint8)).save(tmp_path / "left.png")
    views, masks = read_sides(tmp_path)
    assert views.shape == (6, 16, 16, 3) and masks[3].max() < 0.6 and masks[0].min() == 1


@pytest.mark.parametrize(
    ("name", "axes", "words"),
    [
        ("a.glb", [[0, 1, 0], [0, 0, 1], [1, 0, 0]], {}),
        ("a.ply", [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], {}),  # as Blender has it: front -y, up +z
        ("a.obj", [[1, 0, 0], [0, 0, 1], [0, -1, 0]], {"front": "+x"}),
        ("a.stl", [[-1, 0, 0], [0, 0, -1], [0, -1, 0]], {"front": "-x", "up": "-y"}),
        ("a.ply", [[0, 0, 1], [1, 0, 0], [0, 1, 0]], {"front": "+y", "up": "+x"}),
    ],
)
def test_the_front_is_where_one_says(tmp_path: Path, name: str, axes: list[list[float]], words: dict[str, str]) -> None:
    assert np.linalg.det(axes) == pytest.approx(1)
    found = read_thing(config(write_mesh(tmp_path / name, axes=np.array(axes, float)), **words)).mesh
    expected = read_thing(config(write_mesh(tmp_path / "same.glb"))).mesh
    for end in (np.min, np.max):
        np.testing.assert_allclose(end(found.vertices, 0), end(expected.vertices, 0), atol=1e-5)
    outlines = [preview(mesh, 32) < 0.95 for mesh in (found, expected)]
    assert (outlines[0] == outlines[1]).mean() > 0.99
    np.testing.assert_allclose(np.abs(found.vertices).max(), 0.5, atol=1e-6)


def test_a_front_that_is_up(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"front: is -y, along .* \(y\); try \+z"):
        coordinates(config(write_mesh(tmp_path / "a.glb"), front="-y"))


def test_maps_are_those_of_the_model() -> None:
    """In its world the front is -y: the front view's pixels have a small y, and normals towards it."""
    from threedgen.systems.texture.scene import with_uv

    mesh, _ = with_uv(SceneMesh(np.asarray(thing().vertices, np.float32), np.asarray(thing().faces)), 64)
    maps = control_maps(mesh, six_sides(64))
    assert maps.shape == (6, 64, 64, 6) and (maps[:, 0, 0] == 0.5).all() and maps.min() >= 0 and maps.max() <= 1
    middle = maps[:, 28, 32]  # a little above the middle
    assert middle[0, 1] < 0.05 and middle[2, 1] == pytest.approx(1.0, abs=0.05)  # nose at -0.5, back at +0.5
    assert middle[1, 0] == pytest.approx(0.75, abs=0.01) and middle[3, 0] == pytest.approx(0.25, abs=0.01)
    assert middle[4, 2] > 0.65 and middle[5, 2] < 0.35
    assert middle[0, 4] < 0.5 and middle[1, 3] > 0.5 and middle[4, 5] > 0.5
    column = maps[0, 32, :, 0]
    inside = column[column != 0.5]
    assert (np.diff(inside) > 0).all()  # x grows to the right of the front view
    pixel = 1.1 / 64
    np.testing.assert_allclose(np.diff(inside)[np.abs(inside[1:] - 0.5) > 0.02], pixel, atol=pixel * 0.02)


@pytest.mark.parametrize("fault", ["none", "zero", "overlapping", "nan", "half"])
def test_uv_that_cannot_be_used_are_made_anew(tmp_path: Path, fault: str) -> None:
    mesh = read_thing(config(write_mesh(tmp_path / "a.glb"))).mesh
    uv = mesh.uv.astype(np.float64).copy()
    uv[:] = {"zero": 0.3, "overlapping": uv % 0.3, "nan": np.nan}.get(fault, uv)
    if fault == "half":
        uv[np.unique(mesh.faces[:6])] = 0.1
    made = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False, visual=trimesh.visual.TextureVisuals(uv=uv))
    found = read_thing(config(write_mesh(tmp_path / "b.obj", made)))
    assert any("new texture coordinates" in note for note in found.notes) is (fault != "none"), found.notes
    assert found.mesh.uv.min() >= 0 and len(found.mesh.faces) == len(mesh.faces)


def test_edges_stay_as_sharp_as_in_the_file(tmp_path: Path) -> None:
    """A box whose faces share no vertex is flat, one whose faces do is round, whatever its new charts are."""
    box = trimesh.creation.box((1, 1, 1))
    soup = trimesh.Trimesh(box.triangles.reshape(-1, 3), np.arange(36).reshape(-1, 3), process=False)
    sharp = read_thing(config(write_mesh(tmp_path / "a.ply", soup, np.eye(3)))).mesh
    assert np.abs(sharp.normals).max(1) == pytest.approx(1, abs=1e-3)
    assert np.abs(read_thing(config(write_mesh(tmp_path / "b.ply", box, np.eye(3)))).mesh.normals).max(1).min() < 0.8


def test_too_many_triangles_are_simplified(tmp_path: Path) -> None:
    found = read_thing(config(write_mesh(tmp_path / "a.glb", trimesh.creation.icosphere(3, 0.5)), budget=400))
    assert len(found.mesh.faces) <= 400 and "simplified to 400" in found.notes[0] and not found.open


def test_what_draws_nothing_needs_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mesh(tmp_path / "a.glb")
    for words in (["views=."], []):
        code, out, _ = run(capsys, "mesh=a.glb", "prior.weights=nowhere", *words, "--dry-run")
        assert code == 0 and "would run texture-object" in out and "weights" not in out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["mesh=none.glb"], "mesh: there is no file"),
        (["mesh=views.yaml"], "mesh: should be a file of one of the kinds"),
        (["mesh=a.ply"], "no triangles"),
        (["mesh=nan.ply"], "mesh: "),
        (["mesh=a.glb", "views=nowhere"], "views: should be a folder"),
        (["mesh=a.glb", "front=z"], "front"),
        (["mesh=a.glb", "texture=100"], "try 64"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mesh(tmp_path / "a.glb")
    trimesh.PointCloud(np.eye(3)).export(tmp_path / "a.ply")
    lost = np.where(np.eye(3) > 0, np.nan, 0)
    trimesh.Trimesh(lost, [[0, 1, 2]], process=False).export(tmp_path / "nan.ply")
    code, _, err = run(capsys, *words, "out=run")
    assert code == 2 and problem in err, err
    assert len([line for line in err.splitlines() if "error" not in line.lower()]) <= 2
