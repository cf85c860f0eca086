"""Baking: rays against brute force, colours and normals of shapes that are known, light in corners, filled gutters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from threedgen.config.errors import ConfigError
from threedgen.export.shape import mesh as meshes
from threedgen.export.shape.mesh import Mesh, on_arrays, vertex_normals
from threedgen.export.surface import bvh
from threedgen.export.surface.bake import Texels, bake, project, tangent_space, texel_frames, wearing_normals
from threedgen.geometry.raster import rasterise_uv, unit


@dataclass(frozen=True)
class Low:
    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    tangents: np.ndarray


def lattice(columns: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """uv (V, 2) of a grid over [0, 1]^2, and its faces, counter-clockwise for u to the right and v up."""
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    k = np.arange(u.size).reshape(u.shape)
    a, b, c, d = k[:-1, :-1].ravel(), k[:-1, 1:].ravel(), k[1:, 1:].ravel(), k[1:, :-1].ravel()
    return np.stack([u.ravel(), v.ravel()], 1), np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def globe(columns: int = 32, rows: int = 16) -> Low:
    """A sphere with longitude and latitude as uv."""
    uv, faces = lattice(columns, rows)
    longitude, latitude = 2 * math.pi * uv[:, 0], math.pi * (uv[:, 1] - 0.5)
    normals = on_globe(uv)
    east = np.stack([-np.sin(longitude), np.cos(longitude), 0 * latitude, np.ones(len(uv))], 1)
    return Low(normals, faces, normals, uv, east)


def on_globe(uv: np.ndarray) -> np.ndarray:
    """The direction that `globe` has at uv (..., 2)."""
    longitude, latitude = 2 * math.pi * uv[..., 0], math.pi * (uv[..., 1] - 0.5)
    flat = np.cos(latitude)
    return np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], -1)


def sheet(columns: int = 1, rows: int = 1, mirrored: bool = False) -> Low:
    """The unit square in the plane z = 0, seen from above; uv = (x, y), or (1 - x, y) for a mirrored texture."""
    place, faces = lattice(columns, rows)
    up = np.broadcast_to([0.0, 0.0, 1.0], (len(place), 3))
    uv = place * (-1, 1) + (1, 0) if mirrored else place
    tangent = np.array([-1.0, 0, 0, -1] if mirrored else [1.0, 0, 0, 1])
    return Low(np.column_stack([place, 0 * place[:, 0]]), faces, up, uv, np.broadcast_to(tangent, (len(place), 4)))


def dense(vertices, faces, colours=None) -> Mesh:
    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces, np.int32)
    colours = np.full((len(vertices), 3), 0.5, np.float32) if colours is None else np.asarray(colours, np.float32)
    return Mesh(vertices, faces, colours, vertex_normals(vertices, faces))


def ball(subdivisions: int = 4, relief: float = 0.0) -> Mesh:
    """A sphere whose radius is 1 + relief * sin(8 x), with its place as colour."""
    mesh = trimesh.creation.icosphere(subdivisions)
    direction = np.asarray(mesh.vertices)
    vertices = direction * (1 + relief * np.sin(8 * direction[:, :1]))
    return dense(vertices, mesh.faces, (direction + 1) / 2)


def place_colour(points):
    return (points + 1) / 2


def texel_uv(height: int, width: int) -> np.ndarray:
    u, v = np.meshgrid((np.arange(width) + 0.5) / width, 1 - (np.arange(height) + 0.5) / height)
    return np.stack([u, v], -1)


# ---------------------------------------------------------------- rays


def brute(mesh, o, d):
    """All (N, F): t of the lines with the triangles, inf for none; and whether the triangle faces along d."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(float) for k in range(3))
    normal = np.cross(b - a, c - a)
    along = d @ normal.T
    with np.errstate(divide="ignore", invalid="ignore"):
        t = ((a * normal).sum(-1) - o @ normal.T) / along
        p = o[:, None] + t[..., None] * d[:, None]
        sides = [(np.cross(q - s, p - s) * normal).sum(-1) for s, q in ((a, b), (b, c), (c, a))]
        inside = np.min(sides, axis=0) >= 0
    return np.where(inside, t, np.inf), along > 0


@given(st.integers(0, 10**6), st.sampled_from([1, 3, 20, 200]))
@settings(max_examples=25)
def test_the_tree_finds_what_brute_force_finds(seed, count):
    rng = np.random.default_rng(seed)
    soup = rng.uniform(-1, 1, (count, 1, 3)) + rng.uniform(-0.4, 0.4, (count, 3, 3))
    mesh = dense(soup.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3))
    tree = bvh.build(mesh.vertices, mesh.faces)
    o, d = rng.uniform(-1.2, 1.2, (100, 3)), unit(rng.standard_normal((100, 3)))
    d[:10] = np.eye(3)[rng.integers(0, 3, 10)]  # along the axes
    t, facing = brute(mesh, o, d)
    for reach in (np.inf, 0.4):
        either = np.where(facing & (np.abs(t) < reach), np.abs(t), np.inf)
        face, bary, distance = bvh.nearest_along(tree, o, d, reach)
        assert np.allclose(np.abs(distance), either.min(1), atol=1e-5)
        met = np.flatnonzero(face >= 0)
        assert np.array_equal(face[met], either.argmin(1)[met]) and np.all(np.isinf(either.min(1)[face < 0]))
        assert np.allclose(distance[met], t[np.arange(100), either.argmin(1)][met], atol=1e-5)
        point = (mesh.vertices[mesh.faces[face[met]]] * bary[met][..., None]).sum(1)
        assert np.allclose(point, o[met] + distance[met][:, None] * d[met], atol=1e-5)


def test_no_ray_slips_through_a_closed_surface():
    """Aimed at vertices and at the middle of edges, from within."""
    mesh = ball(3)
    tree = bvh.build(mesh.vertices, mesh.faces)
    edges = mesh.vertices[mesh.faces].mean(1), mesh.vertices[mesh.faces[:, :2]].mean(1), mesh.vertices
    aims = np.concatenate(edges)
    origin = np.broadcast_to([0.1, -0.05, 0.2], aims.shape)
    face, _, distance = bvh.nearest_along(tree, origin, unit(aims - origin), 10.0)
    assert (face >= 0).all()
    assert np.allclose(distance, np.linalg.norm(aims - origin, axis=1), atol=1e-4)


# ---------------------------------------------------------------- colour


def test_the_colour_of_a_sphere_is_recovered_from_the_field():
    """The simple sphere's facets lie inside; the colours must be those of the dense one's surface."""
    maps = bake(globe(16, 8), ball(4), (48, 96), place_colour, cage=0.05, occlusion_rays=0)
    wanted = (on_globe(texel_uv(48, 96)) + 1) / 2
    error = np.abs(maps.base_colour - wanted).max(-1)
    assert maps.covered.mean() > 0.97 and maps.info["missed"] == 0 and maps.info["coverage"] > 0.97
    assert np.quantile(error[3:-3], 0.9) < 0.03  # facets turn the uv a little against longitude and latitude
    radius = np.linalg.norm(2 * maps.base_colour - 1, axis=-1)[maps.covered]
    assert np.abs(radius - 1).max() < 0.006  # and not where the facets are, which go down to 0.96
    flat = bake(globe(16, 8), ball(4), (48, 96), place_colour, cage=1e-6, occlusion_rays=0)
    assert np.linalg.norm(2 * flat.base_colour - 1, axis=-1)[flat.covered].min() < 0.97
    assert flat.info["missed"] > 0.9


def test_without_a_field_the_colours_of_the_vertices_are_taken():
    asked = bake(globe(), ball(4), 64, place_colour, cage=0.05, occlusion_rays=0)
    stored = bake(globe(), ball(4), 64, cage=0.05, occlusion_rays=0)
    assert np.abs(asked.base_colour - stored.base_colour).max() < 0.01
    assert np.ptp(stored.base_colour) > 0.9


def test_where_nothing_is_in_the_cage_the_nearest_vertex_is_taken():
    low = sheet()
    colours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    mesh = dense([[0, 0, -5], [1, 0, -5], [0.5, 1, -5]], [[0, 1, 2]], colours)
    maps = bake(low, mesh, 16, cage=0.01, occlusion_rays=0)
    assert maps.info["missed"] == 1
    assert maps.base_colour[15, 0].tolist() == [1, 0, 0] and maps.base_colour[15, 15].tolist() == [0, 1, 0]
    assert maps.base_colour[0, 8].tolist() == [0, 0, 1]
    assert np.allclose(maps.normal, [0, 0, 1])


def test_the_other_side_of_a_thin_wall_is_not_taken():
    """The far side is nearer to the simple mesh than the right one."""
    place, faces = lattice(4, 4)
    upper, lower = np.column_stack([place, 0 * place[:, 0] + 0.008]), np.column_stack([place, 0 * place[:, 0] - 0.001])
    both = np.concatenate([faces, faces[:, ::-1] + len(place)])
    colours = np.repeat([[1, 0, 0], [0, 0, 1.0]], len(place), axis=0)
    maps = bake(sheet(), dense(np.concatenate([upper, lower]), both, colours), 8, cage=0.012, occlusion_rays=0)
    assert np.allclose(maps.base_colour, [1, 0, 0]) and maps.info["missed"] == 0
    assert np.allclose(maps.normal, [0, 0, 1], atol=1e-6)


def test_colours_are_asked_in_chunks_and_their_shape_is_checked(monkeypatch):
    sizes = []

    def colour(points):
        sizes.append(len(points))
        assert points.dtype == np.float32
        return place_colour(points)

    whole = bake(globe(), ball(3), 40, place_colour, occlusion_rays=0)
    monkeypatch.setattr(meshes, "CHUNK", 100)
    chunked = on_arrays(lambda points: torch.from_numpy(colour(points.numpy())))
    parts = bake(globe(), ball(3), 40, chunked, occlusion_rays=0)
    assert max(sizes) == 100 and np.array_equal(whole.base_colour, parts.base_colour)
    for wrong in (lambda p: p[:, :2], lambda p: p * np.nan):
        with pytest.raises(ConfigError, match="colours"):
            bake(globe(), ball(2), 16, wrong, occlusion_rays=0)


# ---------------------------------------------------------------- normals


def shown(low: Low, maps, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """World normals (N, 3) that a renderer makes of the normal map, and the smooth ones it starts from."""
    texels = texel_frames(low, rasterise_uv(low.uv, low.faces, (height, width)))
    x, y, z = np.moveaxis(maps.normal[maps.covered][..., None], 1, 0)
    bitangent = np.cross(texels.normals, texels.tangents) * texels.signs[:, None]
    return unit(x * texels.tangents + y * bitangent + z * texels.normals), texels.normals


def test_the_relief_of_a_sphere_comes_back_from_its_normal_map():
    low, relief = globe(24, 12), 0.01
    maps = bake(low, ball(6, relief), (64, 128), cage=0.05, occlusion_rays=0)
    seen, smooth = shown(low, maps, 64, 128)
    place = texel_frames(low, rasterise_uv(low.uv, low.faces, (64, 128))).points
    direction = unit(place)
    # gradient of |p| - 1 - relief sin(8 x / |p|)
    slope = 8 * relief * np.cos(8 * direction[:, :1])
    exact = unit(direction - slope * (np.array([1.0, 0, 0]) - direction[:, :1] * direction))
    angle = np.degrees(np.arccos(np.clip((seen * exact).sum(1), -1, 1)))
    without = np.degrees(np.arccos(np.clip((smooth * exact).sum(1), -1, 1)))
    assert np.median(without) > 2.0 and np.median(angle) < 0.5 and np.quantile(angle, 0.95) < 2
    assert np.allclose(np.linalg.norm(maps.normal, axis=-1), 1, atol=1e-5)


def test_a_surface_without_relief_has_a_blue_map():
    maps = bake(globe(), ball(5), 48, cage=0.05, occlusion_rays=0)
    assert maps.normal[..., 2].min() > 0.98 and np.abs(maps.normal[..., :2]).mean() < 0.02
    flat = bake(sheet(), dense(*_plane(4)), 8, occlusion_rays=0)
    assert np.unique(flat.uint8()["normal"].reshape(-1, 3), axis=0).tolist() == [[128, 128, 255]]


def _plane(n: int, height=lambda x, y: 0 * x):
    place, faces = lattice(n, n)
    return np.column_stack([place, height(place[:, 0], place[:, 1])]), faces


@pytest.mark.parametrize("mirrored", [False, True])
def test_green_points_along_growing_v_and_red_along_growing_u(mirrored):
    """A slope rising along +y leans towards -y: less green; mirrored textures turn red, not green."""
    low = sheet(2, 2, mirrored)
    rising_y = bake(low, dense(*_plane(32, lambda x, y: 0.02 * np.sin(6 * y))), 32, cage=0.1, occlusion_rays=0)
    v = texel_uv(32, 32)[..., 1]
    slope = 0.12 * np.cos(6 * v)
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(rising_y.normal[..., 1] + slope / np.sqrt(1 + slope**2))[inner].max() < 0.01
    assert np.abs(rising_y.normal[..., 0])[inner].max() < 0.01
    rising_x = bake(low, dense(*_plane(32, lambda x, y: 0.02 * np.sin(6 * x))), 32, cage=0.1, occlusion_rays=0)
    x = texel_uv(32, 32)[..., 0]
    slope = 0.12 * np.cos(6 * (1 - x)) * -1 if mirrored else 0.12 * np.cos(6 * x)
    assert np.abs(rising_x.normal[..., 0] + slope / np.sqrt(1 + slope**2))[inner].max() < 0.01


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_tangent_space_is_undone_by_what_a_renderer_does(seed):
    """Also where the interpolated tangent leans towards the normal."""
    rng = np.random.default_rng(seed)
    normals = unit(rng.standard_normal((50, 3)))
    tangents = unit(unit(np.cross(normals, rng.standard_normal((50, 3)))) + 0.3 * rng.uniform(-1, 1, (50, 1)) * normals)
    signs = rng.choice([-1.0, 1.0], 50)
    directions = unit(normals + 0.5 * unit(rng.standard_normal((50, 3))))
    x, y, z = tangent_space(directions, Texels(normals, normals, tangents, signs)).T[..., None]
    back = x * tangents + y * np.cross(normals, tangents) * signs[:, None] + z * normals
    assert np.allclose(unit(back), directions, atol=1e-5)


# ---------------------------------------------------------------- occlusion


def test_a_place_in_the_open_sees_everything_and_one_under_a_lid_nothing():
    place, faces = _plane(2)
    floor = bvh.build(place, faces)
    points, up = np.array([[0.5, 0.5, 0.0]]), np.array([[0.0, 0.0, 1.0]])
    assert bvh.openness(floor, points, up, 64, np.inf, 1e-3)[0] == 1
    lid = bvh.build((place - 0.5) * (1000, 1000, 0) + (0, 0, 0.2), faces)
    assert bvh.openness(lid, points, up, 64, np.inf, 1e-3)[0] < 0.02
    assert bvh.openness(lid, points, up, 64, 0.1, 1e-3)[0] == 1  # out of reach


@pytest.mark.parametrize("distance", [0.01, 0.5, 1.0, 3.0])
def test_light_beside_a_wall_is_that_of_the_form_factor(distance):
    """An endless wall of height h at distance d takes (1 - d / sqrt(d^2 + h^2)) / 2 of a floor's light."""
    wall = np.array([[0, -500, 0], [0, 500, 0], [0, 500, 1], [0, -500, 1.0]])
    tree = bvh.build(wall, np.array([[0, 1, 2], [0, 2, 3]]))
    point = np.array([[distance, 0.0, 0.0]])
    seen = bvh.openness(tree, point, np.array([[0.0, 0.0, 1.0]]), 512, np.inf, 0.0)[0]
    assert seen == pytest.approx(1 - (1 - distance / math.hypot(distance, 1)) / 2, abs=0.02)


@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_half_the_sky_is_open_beside_a_half_space_whatever_the_normal(seed):
    """A huge wall through the point, along its normal: exactly half of the light, in any orientation."""
    rng = np.random.default_rng(seed)
    normal = unit(rng.standard_normal(3))
    side = unit(np.cross(normal, rng.standard_normal(3)))
    across = np.cross(normal, side)
    wall = np.array([p * normal + q * across for p, q in ((-99, -99), (99, -99), (99, 99), (-99, 99))]) + 1e-3 * side
    tree = bvh.build(wall, np.array([[0, 1, 2], [0, 2, 3]]))
    assert bvh.openness(tree, np.zeros((1, 3)), normal[None], 256, 1.0, 0.0)[0] == pytest.approx(0.5, abs=0.03)


def test_occlusion_is_dark_in_a_groove_and_goes_into_red():
    groove = _plane(40, lambda x, y: -0.3 * np.exp(-(((x - 0.5) / 0.08) ** 2)))
    maps = bake(sheet(8, 8), dense(*groove), 32, cage=0.4)
    assert maps.orm[16, 16, 0] < 0.45 and maps.orm[16, 2:5, 0].min() > 0.9
    assert maps.uint8()["orm"][0, 0].tolist()[1:] == [255, 0]  # rough, no metal
    without = bake(sheet(8, 8), dense(*groove), 32, cage=0.4, occlusion_rays=0)
    assert np.allclose(without.orm[..., 0], 1)


# ---------------------------------------------------------------- texels


def test_the_background_is_filled_from_the_nearest_chart():
    low = sheet()
    left, right = replace(low, uv=0.1 + 0.25 * low.uv), replace(low, uv=np.array([0.65, 0.6]) + 0.3 * low.uv)
    together = Low(
        np.concatenate([left.vertices, right.vertices + [5, 0, 0]]),
        np.concatenate([low.faces, low.faces + 4]),
        np.tile(low.normals, (2, 1)),
        np.concatenate([left.uv, right.uv]),
        np.tile(low.tangents, (2, 1)),
    )
    field = lambda p: np.where(p[:, :1] > 3, [[0.0, 0.2, 1.0]], [[1.0, 0.1, 0.0]])  # noqa: E731
    maps = bake(together, dense(together.vertices, together.faces), 40, field, occlusion_rays=0)
    assert maps.covered.mean() == pytest.approx(0.25**2 + 0.3**2, abs=0.02)
    shades = np.unique(maps.uint8()["base_colour"].reshape(-1, 3), axis=0).tolist()
    assert sorted(shades) == [[0, 51, 255], [255, 26, 0]]
    assert maps.base_colour[39, 0].tolist() == pytest.approx([1, 0.1, 0])  # lower left is at small u and v
    assert maps.base_colour[0, 39].tolist() == pytest.approx([0, 0.2, 1])


def test_projection_moves_points_onto_the_surface_from_both_sides():
    mesh = ball(5)
    tree = bvh.build(mesh.vertices, mesh.faces)
    direction = unit(np.random.default_rng(0).standard_normal((300, 3)))
    scale = np.where(np.arange(300) % 2, 0.97, 1.03)[:, None]
    found = project(tree, mesh, direction * scale, direction, 0.05)
    assert found.hit.all() and np.abs(np.linalg.norm(found.points, axis=1) - 1).max() < 2e-3
    assert np.allclose(found.of(mesh.vertices, mesh.faces), found.points, atol=1e-5)
    assert not project(tree, mesh, direction * scale, direction, 0.01).hit.any()


def test_uv_outside_of_the_texture_are_said():
    with pytest.raises(ConfigError, match="no texel is covered"):
        bake(replace(sheet(), uv=sheet().uv + 3), dense(*_plane(1)), 8)


def test_baking_twice_gives_the_same_bytes():
    one, two = (bake(globe(), ball(3, 0.02), 32, place_colour, cage=0.05) for _ in range(2))
    for name, value in one.uint8().items():
        assert value.dtype == np.uint8 and np.array_equal(value, two.uint8()[name])


def test_a_mesh_wears_the_normals_of_the_dense_one_but_not_those_of_the_other_side():
    low, fine = globe(24, 12), ball(5)
    rough = replace(low, normals=unit(low.normals + np.random.default_rng(0).normal(0, 0.1, low.normals.shape)))
    worn = wearing_normals(rough, fine)
    assert (worn.normals * unit(low.vertices)).sum(1).min() > 0.99
    assert np.abs((worn.normals * worn.tangents[:, :3]).sum(1)).max() < 1e-4
    inside_out = replace(fine, normals=-fine.normals)
    assert np.array_equal(wearing_normals(rough, inside_out).normals, rough.normals.astype(np.float32))


def test_a_normal_that_faces_elsewhere_is_not_baked():
    steep = dense(*_plane(32, lambda x, y: 2.0 * np.abs(x - 0.5)))
    maps = bake(sheet(), steep, 16, cage=2, occlusion_rays=0)
    assert maps.normal[..., 2].min() > 0.99


def test_halved_maps_are_means_of_four_and_unit_normals():
    maps = bake(globe(), ball(5, 0.01), 32, cage=0.05, occlusion_rays=0)
    half = maps.halved()
    assert half.base_colour.shape == (16, 16, 3) and half.covered.shape == (16, 16)
    assert np.allclose(half.base_colour[0, 0], maps.base_colour[:2, :2].mean((0, 1)), atol=1e-6)
    assert np.allclose(np.linalg.norm(half.normal, axis=-1), 1, atol=1e-5) and half.halved().orm.shape == (8, 8, 3)
