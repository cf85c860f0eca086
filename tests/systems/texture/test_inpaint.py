"""Inpainting of unseen texels: where most of them are seen, without a seam."""

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from tests.support.nose_box import config, write_mesh
from tests.support.tiny_mvadapter import tiny_prior_config
from tests.systems.texture.test_sides import run
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.geometry.raster import rasterise_uv
from threedgen.run.arrays import Array
from threedgen.systems.draw.mesh import SIDES
from threedgen.systems.texture.inpaint import blend_hole, inpaint_texture
from threedgen.systems.texture.sides import Sides, project, read_mesh

RED, GREEN = np.array([0.8, 0.1, 0.1], np.float32), np.array([0.1, 0.8, 0.1], np.float32)
SIZE = 64


def hidden_top(folder: Path) -> tuple[TexturedMesh, Sides]:
    """A box with red sides, whose top and bottom are not given."""
    _, mesh, _ = read_mesh(config(write_mesh(folder / "a.glb", trimesh.creation.box((0.8, 0.5, 0.4)))))
    views = np.broadcast_to(RED, (6, SIZE, SIZE, 3)).copy()
    masks = np.ones((6, SIZE, SIZE), np.float32)
    masks[4:] = 0
    return mesh, Sides(views, masks)


def test_unseen_texels_are_inpainted_where_most_are_seen(tmp_path: Path) -> None:
    mesh, sides = hidden_top(tmp_path)
    made = project(mesh, sides, 128)
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


def test_2d_model_inpaints_what_given_sides_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
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
