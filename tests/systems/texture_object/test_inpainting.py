"""Texels that no side shows: painted from where most of them are seen, without a seam."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from tests.support.tiny_mvadapter import tiny_prior_config
from tests.systems.texture_object.test_task import config, run, write_mesh
from threedgen.geometry.raster import rasterise_uv
from threedgen.run.arrays import Array
from threedgen.systems.texture_object.inpainting import inpainted, without_seam
from threedgen.systems.texture_object.mesh import SIDES, Thing, read_thing
from threedgen.systems.texture_object.options import InpaintConfig
from threedgen.systems.texture_object.task import Sides, seen_texture

RED, GREEN = np.array([0.8, 0.1, 0.1], np.float32), np.array([0.1, 0.8, 0.1], np.float32)
SIZE = 64


def hidden_top(folder: Path) -> tuple[Thing, Sides]:
    """A box whose red sides are given, and of its top and bottom nothing."""
    thing = read_thing(config(write_mesh(folder / "a.glb", trimesh.creation.box((0.8, 0.5, 0.4)))))
    views = np.broadcast_to(RED, (6, SIZE, SIZE, 3)).copy()
    masks = np.ones((6, SIZE, SIZE), np.float32)
    masks[4:] = 0
    return thing, Sides(views, masks)


def test_what_is_hidden_is_painted_where_most_of_it_is_seen(tmp_path: Path) -> None:
    thing, sides = hidden_top(tmp_path)
    made = seen_texture(thing.mesh, sides, 128, lambda: None)
    asked: list[tuple[Array, Array, int]] = []

    def paint(picture: Array, hole: Array, number: int) -> Array:
        asked.append((picture, hole, number))
        return np.where((hole & (np.arange(SIZE) % 8 < 4))[..., None], GREEN, picture)  # with stripes

    whole, count = inpainted(thing.mesh, made, SIZE, InpaintConfig(), paint)
    assert count == len(asked) and [number for *_, number in asked] == list(range(count))
    sizes = [hole.mean() for _, hole, _ in asked]
    assert sizes[0] > 0.3 and sizes[1] > 0.3 and max(sizes[2:], default=0) < 0.2  # top and bottom, then their edges
    for picture, hole, _ in asked[:2]:
        assert np.abs(picture[hole] - RED).max() < 0.1  # the colours around it
    covered = rasterise_uv(thing.mesh.uv, thing.mesh.faces, 128).mask
    assert made.share < 0.55 and whole.share > 0.9 and (whole.visible <= covered).all()
    green = np.abs(whole.texture - GREEN).max(-1) < 0.1
    assert 0.2 < green[whole.visible & ~made.visible].mean() < 0.7 and green[made.visible].mean() < 0.05
    none, count = inpainted(thing.mesh, made, SIZE, InpaintConfig(least=0.9), paint)
    assert count == 0 and none is made
    assert inpainted(thing.mesh, made, SIZE, InpaintConfig(views=1), paint)[1] == 1


def test_a_hole_has_the_gradients_of_what_was_painted_and_no_seam() -> None:
    picture = np.full((24, 32, 3), 0.5, np.float32)
    hole = np.zeros((24, 32), bool)
    hole[6:18, 8:24] = True
    painted = picture + 0.3  # all of it is brighter, and in it is a line
    painted[12, 10:22] -= 0.2
    found = without_seam(painted, picture, hole)
    assert np.array_equal(found[~hole], picture[~hole])
    assert np.abs(np.diff(found, axis=1)[:, 7:9]).max() < 0.02  # instead of 0.3
    assert found[11, 16, 0] - found[12, 16, 0] > 0.1
    assert np.array_equal(without_seam(painted, picture, np.zeros_like(hole)), picture)


def test_a_2d_model_paints_what_given_sides_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _, sides = hidden_top(tmp_path)
    (tmp_path / "sides").mkdir()
    for side, view, mask in zip(SIDES, sides.views, sides.masks, strict=True):
        pixels = np.round(255 * np.concatenate([view, mask[..., None]], -1)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "sides" / f"{side}.png")
    prior = tiny_prior_config(tmp_path / "prior")
    given = ["mesh=a.glb", "views=sides", "steps=2", *(f"prior.{key}={value}" for key, value in prior.items())]
    words = [*given, "prior.adapter=null", "complete.name=inpaint", "complete.views=2"]
    code, _, err = run(capsys, *words, "prompt=a red car", "out=run")
    assert code == 0, err
    summary = json.loads(Path("run", "summary.json").read_text())
    assert summary["views_painted"] == 2 and summary["texels_painted"] > 0.2
    code, _, err = run(capsys, *words, "out=wordless")
    assert code == 2 and "prompt: is empty" in err
    code, _, err = run(capsys, *given, "prompt=a red car", "out=both")
    assert code == 2 and "views: are given, and there is a prompt" in err
    code, _, err = run(capsys, "mesh=a.glb", "views=sides", "out=diffused")
    assert code == 0, err
    files = [Path(name, "texture.png").read_bytes() for name in ("run", "diffused")]
    assert files[0] != files[1]
