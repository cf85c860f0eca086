"""The task "texture" with rig.name=sides: objects with sampled or given sides; inpainting of unseen texels."""

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from benchmarks.glb_check import Expected, check_glb
from tests.support import box_room, command
from tests.support.errors import refused
from tests.support.example_run import Page, decoded
from tests.support.nose_box import config, nose_box, write_mesh
from tests.support.task_server import write_config
from tests.support.tiny_mvadapter import GEOMETRY, tiny_prior_config
from threedgen import cli
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.surface.from_views import texture_from_views
from threedgen.geometry.images import write_png
from threedgen.geometry.raster import rasterise_uv
from threedgen.run.arrays import Array
from threedgen.systems.draw.mesh import SIDES, SourceMesh, six_sides
from threedgen.systems.texture.given import Given, read_sides
from threedgen.systems.texture.inpaint import blend_hole, inpaint_texture
from threedgen.systems.texture.task import read_mesh

RED, GREEN = np.array([0.8, 0.1, 0.1], np.float32), np.array([0.1, 0.8, 0.1], np.float32)
SIZE = 64


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a.glb in it."""
    monkeypatch.chdir(tmp_path)
    write_mesh(tmp_path / "a.glb")


def write_views(folder: Path, size: int = 64) -> None:
    mesh = SourceMesh(np.asarray(nose_box().vertices, np.float32), np.asarray(nose_box().faces))
    for side, view in zip(SIDES, box_room.truth(mesh, six_sides(size)), strict=True):
        write_png(folder / f"{side}.png", view)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    write_config(Path("views.yaml"), {"task": "texture", "threads": 1, "texture": 128, "rig": {"size": 64}})
    return command.ask(capsys, "--config", "views.yaml", *words)


def test_given_sides_are_projected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    images = {image["alt"]: decoded(image["src"]) for tag, image in page.attributes if tag == "img"}
    files = {"Before": "before", "After": "after", "Mesh": "preview", "Pictures": "views", "Texture": "texture"}
    assert images == {label: Path("run", f"{name}.png").read_bytes() for label, name in files.items()}
    assert page.decoded("mesh") == data and page.texts["h1"] == ["a"]
    assert images["Before"] != images["After"]
    found = trimesh.load(tmp_path / "run" / "textured.glb", process=False, force="mesh")
    np.testing.assert_allclose(found.bounds, trimesh.load(tmp_path / "a.glb", force="mesh").bounds, atol=1e-5)


def test_unusable_sides_are_refused(tmp_path: Path) -> None:
    write_views(tmp_path, 16)
    Image.fromarray(np.full((16, 16, 4), 128, np.uint8)).save(tmp_path / "left.png")
    sides = read_sides(tmp_path)
    assert sides.images.shape == (6, 16, 16, 3) and sides.masks is not None
    assert sides.masks[3].max() < 0.6 and sides.masks[0].min() == 1  # transparent pixels are not the object
    write_png(tmp_path / "top.png", np.zeros((32, 64, 3)))
    with refused("views", "top 64 x 32"):
        read_sides(tmp_path)
    (tmp_path / "top.png").unlink()
    with refused("views", "top.png"):
        read_sides(tmp_path)


def test_sides_are_sampled_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that lost its mesh makes it again from the same sides; so does one that is given them."""
    prior = tiny_prior_config(tmp_path / "prior", GEOMETRY)
    words = ["mesh=a.glb", *(f"prior.{name}={value}" for name, value in prior.items()), "steps=2"]
    code, out, err = run(capsys, *words, "prompt=a red dog", "synchronise=2", "out=run")
    assert code == 0 and out.splitlines()[-1] == str(Path("run", "textured.glb")), err
    assert {path.stem for path in Path("run", "views").iterdir()} == set(SIDES)
    first, kept = Path("run", "texture.png").read_bytes(), Path("run", "views.safetensors")
    sampled_at = kept.stat().st_mtime_ns
    Path("run", "textured.glb").unlink()
    assert cli.main(["--resume", "run"]) == 0
    assert kept.stat().st_mtime_ns == sampled_at and Path("run", "texture.png").read_bytes() == first
    capsys.readouterr()
    assert run(capsys, "mesh=a.glb", "views=run/views", "out=given")[0] == 0
    code, _, err = run(capsys, *words, "prompt=a red dog", "views=run/views", "out=both")
    assert code == 2 and err.startswith("views: ")
    code, _, err = run(capsys, "mesh=a.glb", "prompt=a red dog", "out=nobody")
    assert code == 2 and err.startswith("prior.adapter: ")


def test_given_sides_need_no_weights(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "mesh=a.glb", "prior.weights=nowhere", "views=.", "--dry-run")
    assert code == 0 and "would run texture" in out and "weights" not in out


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], ("mesh: ",)),
        (["mesh=views.yaml"], ("mesh: ", "views.yaml", ".glb")),
        (["mesh=a.ply"], ("mesh: ", "triangles")),
        (["mesh=a.glb", "views=nowhere"], ("views: ", "nowhere")),
        (["mesh=a.glb", "texture=100"], ("100", "64")),
        (["mesh=a.glb", "scale=2"], ("scale", "sides")),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], values: tuple[str, ...]
) -> None:
    trimesh.PointCloud(np.eye(3)).export(tmp_path / "a.ply")
    code, _, err = run(capsys, *words, "out=run")
    assert code == 2 and all(value in err for value in values), err
    assert len([line for line in err.splitlines() if "error" not in line.lower()]) <= 2


def hidden_top(folder: Path) -> tuple[TexturedMesh, Given]:
    """A box with red sides, whose top and bottom are not given."""
    _, mesh, _ = read_mesh(config(write_mesh(folder / "a.glb", trimesh.creation.box((0.8, 0.5, 0.4)))))
    views = np.broadcast_to(RED, (6, SIZE, SIZE, 3)).copy()
    masks = np.ones((6, SIZE, SIZE), np.float32)
    masks[4:] = 0
    return mesh, Given(views, six_sides(SIZE), masks)


def test_unseen_texels_are_inpainted_where_most_are_seen(tmp_path: Path) -> None:
    mesh, sides = hidden_top(tmp_path)
    made = texture_from_views(mesh, 128, sides.cameras, sides.images, sides.blend, masks=sides.masks)
    asked: list[tuple[Array, Array, int]] = []

    def inpaint(image: Array, hole: Array, number: int) -> Array:
        asked.append((image, hole, number))
        return np.where((hole & (np.arange(SIZE) % 8 < 4))[..., None], GREEN, image)  # with stripes

    whole, count = inpaint_texture(mesh, made, SIZE, 8, inpaint)
    assert count == len(asked) and [number for *_, number in asked] == list(range(count))
    sizes = [hole.mean() for _, hole, _ in asked]
    assert sizes[0] > 0.3 and sizes[1] > 0.3 and max(sizes[2:], default=0) < 0.2  # top and bottom, then their edges
    for image, hole, _ in asked[:2]:
        assert np.abs(image[hole] - RED).max() < 0.1  # the colours around it
    covered = rasterise_uv(mesh.uv, mesh.faces, 128).mask
    assert made.share < 0.55 and whole.share > 0.9 and (whole.visible <= covered).all()
    green = np.abs(whole.texture - GREEN).max(-1) < 0.1
    assert 0.2 < green[whole.visible & ~made.visible].mean() < 0.7 and green[made.visible].mean() < 0.05
    none, count = inpaint_texture(mesh, made, SIZE, 8, inpaint, min_hole=0.9)
    assert count == 0 and none is made
    assert inpaint_texture(mesh, made, SIZE, 1, inpaint)[1] == 1


def test_blend_hole_keeps_gradients_without_a_seam() -> None:
    image = np.full((24, 32, 3), 0.5, np.float32)
    hole = np.zeros((24, 32), bool)
    hole[6:18, 8:24] = True
    painted = image + 0.3  # all of it is brighter, with a line
    painted[12, 10:22] -= 0.2
    found = blend_hole(painted, image, hole)
    assert np.array_equal(found[~hole], image[~hole])
    assert np.abs(np.diff(found, axis=1)[:, 7:9]).max() < 0.02  # instead of 0.3
    assert found[11, 16, 0] - found[12, 16, 0] > 0.1
    assert np.array_equal(blend_hole(painted, image, np.zeros_like(hole)), image)


def test_2d_model_inpaints_what_given_sides_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, sides = hidden_top(tmp_path)
    (tmp_path / "sides").mkdir()
    for side, view, mask in zip(SIDES, sides.images, sides.masks, strict=True):
        pixels = np.round(255 * np.concatenate([view, mask[..., None]], -1)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "sides" / f"{side}.png")
    prior = tiny_prior_config(tmp_path / "prior")
    given = ["mesh=a.glb", "views=sides", "steps=2", *(f"prior.{key}={value}" for key, value in prior.items())]
    words = [*given, "prior.adapter=null", "inpaint_views=2"]
    code, _, err = run(capsys, *words, "prompt=a red car", "out=run")
    assert code == 0, err
    summary = json.loads(Path("run", "summary.json").read_text())
    assert summary["views_painted"] == 2 and summary["texels_painted"] > 0.2
    code, _, err = run(capsys, *words, "out=wordless")
    assert code == 2 and err.startswith("prompt: ")
    code, _, err = run(capsys, *given, "prompt=a red car", "out=both")
    assert code == 2 and err.startswith("views: ")
    code, _, err = run(capsys, "mesh=a.glb", "views=sides", "out=diffused")
    assert code == 0, err
    assert Path("run", "texture.png").read_bytes() != Path("diffused", "texture.png").read_bytes()
