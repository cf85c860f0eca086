"""Textures from pictures: true pictures of a room give back its colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support import box_room
from threedgen.config import ConfigError
from threedgen.export.files.check import Expected, check_glb
from threedgen.export.files.glb import textured_glb_bytes
from threedgen.export.surface.from_views import render, texture_from_views
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import png, psnr, to_uint8
from threedgen.geometry.raster import rasterise_views
from threedgen.systems.texture.scene import SceneMesh, with_uv

SIZE = (48, 64)


def rings() -> Cameras:
    """Two turns, one looking down and one up."""
    low, high = box_room.look(10, SIZE, 0.0, -0.4), box_room.look(10, SIZE, 0.5, 0.4)
    return Cameras(torch.cat([low.c2w, high.c2w]), Projection(torch.cat([low.K, high.K])), *SIZE)


@pytest.mark.parametrize("inwards", [False, True])
def test_true_pictures_give_back_the_colours(inwards: bool) -> None:
    room = box_room.scene()
    room = SceneMesh(room.vertices, room.faces[:, ::-1] if inwards else room.faces)
    mesh, _ = with_uv(room, 256)
    at, new = rings(), box_room.look(6, SIZE, 0.27)
    textured = texture_from_views(mesh, 256, at, box_room.truth(room, at))
    assert textured.share > 0.8
    pictures, truth = render(mesh, textured.texture, new), box_room.truth(room, new)
    found = [psnr(one, other) for one, other in zip(truth, pictures, strict=True)]
    assert min(found) > 33 and np.mean(found) > 38, found
    data = textured_glb_bytes(mesh, {"base_colour": png(to_uint8(textured.texture))}, "scene", {"a": 1}, scene=True)
    expected = Expected(triangles=len(mesh.faces), texture=256, gltf_extras=("a",), scene=True)
    assert not check_glb(data, expected)
    assert bool(check_glb(data, Expected(texture=256))) is inwards  # no body


def test_what_is_behind_something_is_not_painted() -> None:
    """A red wall behind a green one: from beside them, each has its own colour."""
    square = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    wide = np.array([1, 4, 4], np.float32)
    room = SceneMesh(
        np.concatenate([square, square * wide - [1, 0, 0]]).astype(np.float32), np.concatenate([faces, faces + 4])
    )
    mesh, _ = with_uv(room, 128)
    at = box_room.look(1, (64, 64))
    c2w = torch.tensor([[0.0, 0, 1, 3], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])[None]  # at x = 3, looking along -x
    at = Cameras(c2w, at.projection, 64, 64)
    found = rasterise_views(room.vertices, room.faces, at).face
    images = np.where(((found == 0) | (found == 1))[..., None], [0, 1, 0], [1, 0, 0]).astype(np.float32)
    textured = texture_from_views(mesh, 128, at, images)
    side = at.c2w.clone()
    side[0, :3, 3] = torch.tensor([3.0, 2.5, 0])
    again = render(mesh, textured.texture, Cameras(side, at.projection, 64, 64))[0]
    green = again[..., 1] > 0.5
    face = rasterise_views(room.vertices, room.faces, Cameras(side, at.projection, 64, 64)).face[0]
    assert (green == ((face == 0) | (face == 1))).mean() > 0.97


def test_pictures_of_something_else() -> None:
    mesh, _ = with_uv(box_room.scene(), 64)
    away = rings().select([0, 1])
    c2w = away.c2w.clone()
    c2w[:, 2, 3] += 1000
    with pytest.raises(ConfigError, match="no picture shows"):
        texture_from_views(mesh, 64, Cameras(c2w, away.projection, *SIZE), np.zeros((2, *SIZE, 3), np.float32))
