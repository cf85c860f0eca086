"""Textures from pictures: true pictures of a room give back its colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from tests.support import box_room
from threedgen.config import ConfigError
from threedgen.export.files.check import Expected, check_glb
from threedgen.export.files.glb import textured_glb_bytes
from threedgen.export.files.textured import TexturedMesh
from threedgen.export.surface.blend import OBJECT
from threedgen.export.surface.from_views import render, texture_from_views
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import png, psnr, to_uint8
from threedgen.geometry.raster import rasterise_views
from threedgen.geometry.rigs import orbit
from threedgen.systems.texture.scene import SceneMesh, with_uv
from threedgen.systems.texture_object.mesh import six_sides

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


def ball(subdivisions: int = 3) -> SceneMesh:
    """A ball with a bump before it, largest coordinate 0.5."""
    parts = [trimesh.creation.icosphere(subdivisions, 0.4), trimesh.creation.icosphere(subdivisions, 0.15)]
    parts[1].apply_translation([0.35, 0, 0])
    whole = trimesh.util.concatenate(parts)
    return SceneMesh(np.asarray(whole.vertices, np.float32), np.asarray(whole.faces))


def test_six_sides_give_back_the_colours_of_a_thing() -> None:
    thing, at = ball(), six_sides(128)
    mesh, _ = with_uv(thing, 256)
    views = box_room.truth(thing, at)
    made = texture_from_views(mesh, 256, at, views, OBJECT)
    again = render(mesh, made.texture, at)
    there = rasterise_views(mesh.vertices, mesh.faces, at).mask
    assert made.share > 0.7 and psnr(views[there], again[there]) > 32
    new = orbit(4, 0.5, 2.2, 0.7, 128, 128, azimuth=0.4)
    found = [psnr(*pair) for pair in zip(box_room.truth(thing, new), render(mesh, made.texture, new), strict=True)]
    assert min(found) > 30, found
    # faces that look inwards, and one view after the others over what is there
    turned = TexturedMesh(mesh.vertices, mesh.faces[:, ::-1], -mesh.normals, mesh.uv, mesh.tangents)
    inwards = texture_from_views(turned, 256, at, views, OBJECT)
    assert psnr(inwards.texture[inwards.seen], made.texture[inwards.seen]) > 40
    first = texture_from_views(mesh, 256, at.select([0]), views[:1], OBJECT)
    both = texture_from_views(mesh, 256, at.select([2]), views[2:3], OBJECT, over=first)
    assert both.share > first.share + 0.1 and (both.seen >= first.seen).all()
    only = first.seen & (np.abs(both.texture - first.texture).max(-1) == 0)
    assert only.sum() > 0.9 * first.seen.sum()


def test_masks_take_pixels_away() -> None:
    thing, at = ball(2), six_sides(64)
    mesh, _ = with_uv(thing, 128)
    masks = np.ones((6, 64, 64), np.float32)
    masks[:, :, :32] = 0
    views = np.where(masks[..., None] > 0, box_room.truth(thing, at), 0)
    made = texture_from_views(mesh, 128, at, views, OBJECT, masks=masks)
    assert made.texture[made.seen].max(-1).min() > 0.05
