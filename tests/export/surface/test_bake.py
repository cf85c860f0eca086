import math
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.brute_force import cross_triangles
from tests.support.globe import globe, lattice, on_globe
from threedgen.export.shape.mesh import Mesh, TexturedMesh, vertex_normals
from threedgen.export.surface import bake as bake_module
from threedgen.export.surface import bvh
from threedgen.export.surface.bake import Maps, texel_frames, with_dense_normals
from threedgen.geometry.raster import rasterise_uv, unit


def sheet(columns: int = 1, rows: int = 1, mirrored: bool = False) -> TexturedMesh:
    """Return the unit square at z = 0 facing up; uv = (x, y), or (1 - x, y) if mirrored."""
    xy, faces = lattice(columns, rows)
    up = np.broadcast_to([0.0, 0.0, 1.0], (len(xy), 3))
    uv = xy * (-1, 1) + (1, 0) if mirrored else xy
    tangent = np.array([-1.0, 0, 0, -1] if mirrored else [1.0, 0, 0, 1])
    return TexturedMesh(np.column_stack([xy, 0 * xy[:, 0]]), faces, up, uv, np.broadcast_to(tangent, (len(xy), 4)))


def dense(vertices, faces, colours=None) -> Mesh:
    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces, np.int32)
    colours = np.full((len(vertices), 3), 0.5, np.float32) if colours is None else np.asarray(colours, np.float32)
    return Mesh(vertices, faces, colours, vertex_normals(vertices, faces))


def ball(subdivisions: int = 4, relief: float = 0.0) -> Mesh:
    """Return a sphere of radius 1 + relief * sin(8 x), coloured by position."""
    mesh = trimesh.creation.icosphere(subdivisions)
    direction = np.asarray(mesh.vertices)
    vertices = direction * (1 + relief * np.sin(8 * direction[:, :1]))
    return dense(vertices, mesh.faces, (direction + 1) / 2)


def baked(low: TexturedMesh, dense: Mesh, size, colours=None, cage: float = bake_module.CAGE, rays: int = 1) -> Maps:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bake_module, "CAGE", cage)
        patch.setattr(bake_module, "OCCLUSION_RAYS", rays)
        return bake_module.bake(low, dense, size, colours)


def position_colour(points):
    return (points + 1) / 2


def texel_uv(height: int, width: int) -> np.ndarray:
    u, v = np.meshgrid((np.arange(width) + 0.5) / width, 1 - (np.arange(height) + 0.5) / height)
    return np.stack([u, v], -1)


@given(st.integers(0, 10**6), st.sampled_from([1, 3, 20, 200]))
@settings(max_examples=25)
def test_nearest_along_matches_brute_force(seed, count):
    rng = np.random.default_rng(seed)
    soup = rng.uniform(-1, 1, (count, 1, 3)) + rng.uniform(-0.4, 0.4, (count, 3, 3))
    mesh = dense(soup.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3))
    tree = bvh.build(mesh.vertices, mesh.faces)
    o, d = rng.uniform(-1.2, 1.2, (100, 3)), unit(rng.standard_normal((100, 3)))
    d[:10] = np.eye(3)[rng.integers(0, 3, 10)]  # along the axes
    t, inside, along = cross_triangles(mesh.vertices, mesh.faces, o, d)
    facing = (inside >= 0) & (along > 0)
    for reach in (np.inf, 0.4):
        either = np.where(facing & (np.abs(t) < reach), np.abs(t), np.inf)
        face, bary, distance = bvh.nearest_along(tree, o, d, reach)
        assert np.allclose(np.abs(distance), either.min(1), atol=1e-5)
        hit = np.flatnonzero(face >= 0)
        assert np.array_equal(face[hit], either.argmin(1)[hit]) and np.all(np.isinf(either.min(1)[face < 0]))
        assert np.allclose(distance[hit], t[np.arange(100), either.argmin(1)][hit], atol=1e-5)
        point = (mesh.vertices[mesh.faces[face[hit]]] * bary[hit][..., None]).sum(1)
        assert np.allclose(point, o[hit] + distance[hit][:, None] * d[hit], atol=1e-5)


def test_bake_queries_colours_at_the_dense_surface():
    """The low-poly facets lie inside the sphere; colours must come from the dense surface."""
    maps = baked(globe(16, 8), ball(4), (48, 96), position_colour, cage=0.05)
    expected = (on_globe(texel_uv(48, 96)) + 1) / 2
    error = np.abs(maps.base_colour - expected).max(-1)
    assert maps.covered.mean() > 0.97 and maps.info["missed"] == 0 and maps.info["coverage"] > 0.97
    assert np.quantile(error[3:-3], 0.9) < 0.03, "facets distort longitude and latitude slightly"
    radius = np.linalg.norm(2 * maps.base_colour - 1, axis=-1)[maps.covered]
    assert np.abs(radius - 1).max() < 0.006, "the facets go down to 0.96"
    flat = baked(globe(16, 8), ball(4), (48, 96), position_colour, cage=1e-6)
    assert np.linalg.norm(2 * flat.base_colour - 1, axis=-1)[flat.covered].min() < 0.97
    assert flat.info["missed"] > 0.9


def test_bake_ignores_the_far_side_of_a_thin_wall():
    """The far side is nearer to the low-poly mesh than the correct side."""
    xy, faces = lattice(4, 4)
    upper, lower = np.column_stack([xy, 0 * xy[:, 0] + 0.008]), np.column_stack([xy, 0 * xy[:, 0] - 0.001])
    both = np.concatenate([faces, faces[:, ::-1] + len(xy)])
    colours = np.repeat([[1, 0, 0], [0, 0, 1.0]], len(xy), axis=0)
    maps = baked(sheet(), dense(np.concatenate([upper, lower]), both, colours), 8, cage=0.012)
    assert np.allclose(maps.base_colour, [1, 0, 0]) and maps.info["missed"] == 0
    assert np.allclose(maps.normal, [0, 0, 1], atol=1e-6)
    assert np.unique(maps.uint8()["normal"].reshape(-1, 3), axis=0).tolist() == [[128, 128, 255]]


def test_normal_map_reproduces_the_relief_of_a_sphere():
    low, relief = globe(24, 12), 0.01
    maps = baked(low, ball(6, relief), (64, 128), cage=0.05)
    texels = texel_frames(low, rasterise_uv(low.uv, low.faces, (64, 128)))
    x, y, z = np.moveaxis(maps.normal[maps.covered][..., None], 1, 0)
    bitangent = np.cross(texels.normals, texels.tangents) * texels.signs[:, None]
    rendered, direction = unit(x * texels.tangents + y * bitangent + z * texels.normals), unit(texels.points)
    # gradient of |p| - 1 - relief sin(8 x / |p|)
    slope = 8 * relief * np.cos(8 * direction[:, :1])
    exact = unit(direction - slope * (np.array([1.0, 0, 0]) - direction[:, :1] * direction))
    angle = np.degrees(np.arccos(np.clip((rendered * exact).sum(1), -1, 1)))
    without = np.degrees(np.arccos(np.clip((texels.normals * exact).sum(1), -1, 1)))
    assert np.median(without) > 2.0 and np.median(angle) < 0.5 and np.quantile(angle, 0.95) < 2
    assert np.allclose(np.linalg.norm(maps.normal, axis=-1), 1, atol=1e-5)


def _plane(n: int, height=lambda x, y: 0 * x):
    xy, faces = lattice(n, n)
    return np.column_stack([xy, height(xy[:, 0], xy[:, 1])]), faces


@pytest.mark.parametrize("mirrored", [False, True])
def test_normal_map_has_red_along_u_and_green_along_v(mirrored):
    """A slope rising along +y has less green; a mirrored texture inverts red, not green."""
    low = sheet(2, 2, mirrored)
    rising_y = baked(low, dense(*_plane(32, lambda x, y: 0.02 * np.sin(6 * y))), 32, cage=0.1)
    v = texel_uv(32, 32)[..., 1]
    slope = 0.12 * np.cos(6 * v)
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(rising_y.normal[..., 1] + slope / np.sqrt(1 + slope**2))[inner].max() < 0.01
    assert np.abs(rising_y.normal[..., 0])[inner].max() < 0.01
    rising_x = baked(low, dense(*_plane(32, lambda x, y: 0.02 * np.sin(6 * x))), 32, cage=0.1)
    x = texel_uv(32, 32)[..., 0]
    slope = 0.12 * np.cos(6 * (1 - x)) * -1 if mirrored else 0.12 * np.cos(6 * x)
    assert np.abs(rising_x.normal[..., 0] + slope / np.sqrt(1 + slope**2))[inner].max() < 0.01


@pytest.mark.parametrize("distance", [0.01, 1.0])
def test_ambient_occlusion_beside_a_wall_matches_the_form_factor(distance):
    """An infinite wall of height h at distance d blocks (1 - d / sqrt(d^2 + h^2)) / 2 of the light."""
    wall = np.array([[0, -500, 0], [0, 500, 0], [0, 500, 1], [0, -500, 1.0]])
    tree = bvh.build(wall, np.array([[0, 1, 2], [0, 2, 3]]))
    point = np.array([[distance, 0.0, 0.0]])
    up = np.array([[0.0, 0.0, 1.0]])
    occlusion = bvh.ambient_occlusion(tree, point, up, 512, np.inf, 0.0)[0]
    assert occlusion == pytest.approx(1 - (1 - distance / math.hypot(distance, 1)) / 2, abs=0.02)
    assert bvh.ambient_occlusion(tree, point, up, 64, 0.9 * distance, 0.0)[0] == 1, "out of reach"


def test_occlusion_of_a_groove_is_in_the_red_channel():
    groove = _plane(40, lambda x, y: -0.3 * np.exp(-(((x - 0.5) / 0.08) ** 2)))
    maps = baked(sheet(8, 8), dense(*groove), 32, cage=0.4, rays=64)
    assert maps.orm[16, 16, 0] < 0.45 and maps.orm[16, 2:5, 0].min() > 0.9
    assert maps.uint8()["orm"][0, 0].tolist()[1:] == [153, 0]  # matte, no metal


def test_with_dense_normals_ignores_the_other_side():
    low, fine = globe(24, 12), ball(5)
    rough = replace(low, normals=unit(low.normals + np.random.default_rng(0).normal(0, 0.1, low.normals.shape)))
    copied = with_dense_normals(rough, fine)
    assert (copied.normals * unit(low.vertices)).sum(1).min() > 0.99
    assert np.abs((copied.normals * copied.tangents[:, :3]).sum(1)).max() < 1e-4
    inside_out = replace(fine, normals=-fine.normals)
    assert np.array_equal(with_dense_normals(rough, inside_out).normals, rough.normals.astype(np.float32))


def test_bake_ignores_steep_normals():
    steep = dense(*_plane(32, lambda x, y: 2.0 * np.abs(x - 0.5)))
    maps = baked(sheet(), steep, 16, cage=2)
    assert maps.normal[..., 2].min() > 0.99
