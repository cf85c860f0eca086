import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from benchmarks.glb_check import Expected, check_glb
from tests.support import box_room
from tests.support.errors import refused
from tests.support.parity_files import parity_files
from threedgen.export.files.glb import textured_glb_bytes
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.surface.blend import MIN_WEIGHT, OBJECT_BLEND, BlendOptions, WeightedMean
from threedgen.export.surface.from_views import render, texture_from_views
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import png, psnr, to_uint8
from threedgen.geometry.raster import rasterise_views
from threedgen.geometry.rigs import orbit
from threedgen.geometry.texture import sample
from threedgen.systems.sample.mesh import SourceMesh, six_sides
from threedgen.systems.texture.scene import with_uv

SIZE = (48, 64)


def rings() -> Cameras:
    low, high = box_room.look(10, SIZE, 0.0, -0.4), box_room.look(10, SIZE, 0.5, 0.4)
    return Cameras(torch.cat([low.c2w, high.c2w]), Projection(torch.cat([low.K, high.K])), *SIZE)


def test_texture_from_views_recovers_a_room() -> None:
    room = box_room.scene()
    room = SourceMesh(room.vertices, room.faces[:, ::-1])
    mesh, _ = with_uv(room, 256)
    at, new = rings(), box_room.look(6, SIZE, 0.27)
    textured = texture_from_views(mesh, 256, at, box_room.truth(room, at))
    assert textured.share > 0.8
    images, truth = render(mesh, textured.texture, new), box_room.truth(room, new)
    values = [psnr(*pair) for pair in zip(truth, images, strict=True)]
    assert min(values) > 33 and np.mean(values) > 38, values
    data = textured_glb_bytes(mesh, {"base_colour": png(to_uint8(textured.texture))}, "scene", {"a": 1}, scene=True)
    expected = Expected(triangles=len(mesh.faces), texture=256, gltf_extras=("a",), scene=True)
    assert not check_glb(data, expected)


def test_texture_from_views_refuses_images_without_the_mesh() -> None:
    mesh, _ = with_uv(box_room.scene(), 64)
    away = rings().select([0, 1])
    c2w = away.c2w.clone()
    c2w[:, 2, 3] += 1000
    with refused():
        texture_from_views(mesh, 64, Cameras(c2w, away.projection, *SIZE), np.zeros((2, *SIZE, 3), np.float32))


def ball(subdivisions: int = 3) -> SourceMesh:
    """Return a ball with a bump in front, largest coordinate 0.5."""
    parts = [trimesh.creation.icosphere(subdivisions, 0.4), trimesh.creation.icosphere(subdivisions, 0.15)]
    parts[1].apply_translation([0.35, 0, 0])
    joined = trimesh.util.concatenate(parts)
    return SourceMesh(np.asarray(joined.vertices, np.float32), np.asarray(joined.faces))


def test_texture_from_views_recovers_an_object_from_six_views() -> None:
    body, at = ball(), six_sides(128)
    mesh, _ = with_uv(body, 256)
    views = box_room.truth(body, at)
    result = texture_from_views(mesh, 256, at, views, OBJECT_BLEND)
    rendered = render(mesh, result.texture, at)
    mask = rasterise_views(mesh.vertices, mesh.faces, at).mask
    assert result.share > 0.7 and psnr(views[mask], rendered[mask]) > 32
    new = orbit(4, 0.5, 2.2, 0.7, 128, 128, azimuth=0.4)
    values = [psnr(*pair) for pair in zip(box_room.truth(body, new), render(mesh, result.texture, new), strict=True)]
    assert min(values) > 30, values
    # inward faces, then views added one after the other
    flipped = TexturedMesh(mesh.vertices, mesh.faces[:, ::-1], -mesh.normals, mesh.uv, mesh.tangents)
    inwards = texture_from_views(flipped, 256, at, views, OBJECT_BLEND)
    assert psnr(inwards.texture[inwards.visible], result.texture[inwards.visible]) > 40
    first = texture_from_views(mesh, 256, at.select([0]), views[:1], OBJECT_BLEND)
    both = texture_from_views(mesh, 256, at.select([2]), views[2:3], OBJECT_BLEND, over=first)
    assert both.share > first.share + 0.1 and (both.visible >= first.visible).all()
    unchanged = first.visible & (np.abs(both.texture - first.texture).max(-1) == 0)
    assert unchanged.sum() > 0.9 * first.visible.sum()


def test_texture_from_views_needs_little_memory_per_image() -> None:
    body, at = ball(2), six_sides(64)
    mesh, _ = with_uv(body, 1024)
    views, figures = box_room.truth(body, at) + np.linspace(-0.1, 0.1, 6, dtype=np.float32)[:, None, None, None], []
    for repeats in (1, 4):
        tracemalloc.start()
        result = texture_from_views(mesh, 1024, at.select([*range(6)] * repeats), np.tile(views, (repeats, 1, 1, 1)))
        figures.append((result.psnr, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    assert figures[0][0] == pytest.approx(figures[1][0], abs=1e-3) and 15 < figures[0][0] < 35
    assert figures[1][1] - figures[0][1] < 18 * 2e6, "a depth map has 0.6 MB"


def test_texture_from_views_ignores_masked_pixels() -> None:
    body, at = ball(2), six_sides(64)
    mesh, _ = with_uv(body, 128)
    masks = np.ones((6, 64, 64), np.float32)
    masks[:, :, :32] = 0
    views = np.where(masks[..., None] > 0, box_room.truth(body, at), 0)
    result = texture_from_views(mesh, 128, at, views, OBJECT_BLEND, masks=masks)
    assert result.texture[result.visible].max(-1).min() > 0.05


def sheet_colours(source: SourceMesh, faces: slice) -> np.ndarray:
    """Project red and blue images of the top and the bottom, and grey sides. Return the mean colour of some faces."""
    views = np.full((6, 128, 128, 3), 0.5, np.float32)
    views[4:] = [[[[1, 0, 0]]], [[[0, 0, 1]]]]
    mesh, _ = with_uv(source, 128)
    result = texture_from_views(mesh, 128, six_sides(128), views, OBJECT_BLEND)
    return sample(result.texture, mesh.uv[mesh.faces[faces]].mean(1)).mean(0)


def test_texture_from_views_shows_both_sides_of_sheets_by_their_winding() -> None:
    body = trimesh.creation.icosphere(2, 0.3)
    points = np.array([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]], np.float32)
    square = np.array([[0, 1, 2], [0, 2, 3]])
    ground = np.concatenate([points - [0, 0, 0.3], np.asarray(body.vertices)]).astype(np.float32)
    under_ball = SourceMesh(ground, np.concatenate([square, np.asarray(body.faces) + 4]))
    np.testing.assert_allclose(sheet_colours(under_ball, slice(0, 2)), [1, 0, 0], atol=0.05)
    doubled = SourceMesh(points, np.concatenate([square, square[:, ::-1]]))
    np.testing.assert_allclose(sheet_colours(doubled, slice(0, 2)), [1, 0, 0], atol=0.05)
    np.testing.assert_allclose(sheet_colours(doubled, slice(2, 4)), [0, 0, 1], atol=0.05)


@pytest.mark.parametrize("path", parity_files("texture_blend"), ids=lambda path: path.stem)
def test_blend_matches_recorded_reference(path: Path) -> None:
    file = np.load(path)
    meta = json.loads(str(file["meta_json"]))
    names = {"error": "pos_error_eps", "cosine": "aoi_cos_thresh", "jump": "depth_grad_thresh"}
    names |= {"opacity": "mask_thresh", "power": "alpha"}
    options = BlendOptions(beside_edge=0.0, window=False, **{name: meta[key] for name, key in names.items()})
    cosine = file["in:uv_aoi_cos"]
    masks = file["in:uv_mask_proj"].reshape(cosine.shape) if "in:uv_mask_proj" in file else None
    valid = options.valid(file["in:uv_pos_error"], cosine, file["in:uv_depth_grad"], masks) & file["in:uv_mask"]
    assert (valid == file["out:valid_mask"]).all()
    weights = [options.weight(c, v) ** (1 / w) for c, v, w in zip(cosine, valid, meta["view_weight"], strict=True)]
    mean = WeightedMean(cosine[0].size)
    for colours, weight in zip(file["in:uv_attr_proj"], weights, strict=True):
        mean.add(colours.reshape(-1, 3), weight.ravel())
    assert (mean.known == file["out:valid_any"].ravel()).all()
    shares = np.stack(weights) / np.maximum(mean.weights, MIN_WEIGHT).reshape(cosine[0].shape)
    np.testing.assert_allclose(shares, file["out:weight"], atol=1e-5)
    texture = mean.mean_or(file["in:existing_texture"].reshape(-1, 3))
    np.testing.assert_allclose(texture, file["out:texture"].reshape(-1, 3), atol=1e-5)
