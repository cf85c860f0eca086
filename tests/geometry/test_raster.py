"""The rasteriser against ray casting and geometry that is known: no gaps, right places, the conventions of cameras."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from benchmarks.mesh_render import render
from threedgen.config.errors import ConfigError
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w
from threedgen.geometry.raster import Buffers, interpolate, rasterise, rasterise_uv, rasterise_views, unit
from threedgen.geometry.rigs import orbit
from threedgen.geometry.texture import sample


def view(
    n: int = 1, elevation: float = 0.3, size: int = 48, distance: float = 3.0, width: int | None = None
) -> Cameras:
    return orbit(n, elevation, distance, 0.7, size, width or size, azimuth=0.4)


def seen_by(cameras: Cameras, vertices, faces, **more) -> Buffers:
    size = (cameras.height, cameras.width)
    return rasterise(vertices, faces, cameras.c2w.numpy(), cameras.fov.numpy(), size, **more)


def along_rays(seen: Buffers, cameras: Cameras) -> np.ndarray:
    """Distances (V, H, W) along the rays instead of along the viewing axis."""
    directions, axis = cameras.rays()[1], -cameras.c2w[:, None, None, :3, 2]
    return seen.z / (directions * axis).sum(-1).numpy()


def sphere(subdivisions: int = 3, radius: float = 1.0):
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def box():
    mesh = trimesh.creation.box((1.0, 0.8, 0.6))
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def square(x: float = 0.0, half: float = 1.0):
    """A square across the x axis at `x`, facing +x; and its uv, upright for a camera on the +x axis."""
    y, z = np.array([-1, 1, 1, -1.0]) * half, np.array([-1, -1, 1, 1.0]) * half
    vertices = np.stack([np.full(4, x), y, z], axis=1)
    return vertices, np.array([[0, 1, 2], [0, 2, 3]]), np.stack([y, z], axis=1) / (2 * half) + 0.5


def cast(vertices, faces, origins, directions):
    """First hit of rays (N, 3) with triangles, brute force: distance (N,), inf for none; face (N,); margin (N,): the
    least barycentric weight over all triangles that might be hit, small near an edge."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = ((a * normal).sum(-1) - origins @ normal.T) / (directions @ normal.T)
        point = origins[:, None] + t[..., None] * directions[:, None]
        area = (normal**2).sum(-1)
        weights = [(np.cross(q - p, point - p) * normal).sum(-1) / area for p, q in ((b, c), (c, a), (a, b))]
    least = np.minimum(np.minimum(weights[0], weights[1]), weights[2])
    hit = (least >= 0) & (t > 0)
    distance = np.where(hit, t, np.inf)
    return distance.min(1), distance.argmin(1), np.nanmin(np.abs(least), axis=1)


# ---------------------------------------------------------------- against rays


@pytest.mark.parametrize("shape", [box, lambda: sphere(2)], ids=["box", "sphere"])
@pytest.mark.parametrize("width", [32, 45])
def test_faces_depth_and_places_agree_with_ray_casting(shape, width):
    vertices, faces = shape()
    cameras = view(2, elevation=0.5, size=32, width=width)
    seen = seen_by(cameras, vertices, faces)
    origins, directions = (t.double().numpy().reshape(-1, 3) for t in cameras.rays())
    depth, face, margin = cast(vertices, faces, origins, directions)
    sure = margin > 0.02  # else within about 1/256 pixel of an edge, or grazing
    assert 0.5 < sure.mean()
    assert np.array_equal(seen.mask.ravel()[sure], np.isfinite(depth)[sure])
    both = sure & np.isfinite(depth)
    assert both.sum() > 100
    assert np.array_equal(seen.face.ravel()[both], face[both])
    assert np.allclose(along_rays(seen, cameras).ravel()[both], depth[both], atol=1e-5)
    assert (seen.mask.ravel() != np.isfinite(depth)).sum() <= 2
    place = interpolate(vertices, faces, seen).reshape(-1, 3)
    assert np.allclose(place[both], (origins + depth[:, None] * directions)[both], atol=1e-4)


def test_places_and_depths_are_those_that_cameras_project():
    vertices, faces = sphere()
    cameras = view(3, size=40, width=56)
    seen = seen_by(cameras, vertices, faces)
    for v in range(3):
        mask = torch.from_numpy(seen.mask[v])
        place = torch.from_numpy(interpolate(vertices, faces, seen)[v])[mask]
        pixels, z = cameras.select([v]).project(place)
        rows, columns = torch.nonzero(mask, as_tuple=True)
        centres = torch.stack([columns, rows], dim=-1) + 0.5
        assert (pixels[0] - centres).abs().max() < 5e-3  # corners are snapped to 1/256 pixel
        assert torch.allclose(z[0], torch.from_numpy(seen.z[v])[mask], atol=1e-5)


def test_a_sphere_has_the_depth_normals_and_outline_of_a_sphere():
    vertices, faces = sphere(4)
    cameras = view(2, size=64)
    seen = seen_by(cameras, vertices, faces)
    origins, directions = (t.numpy() for t in cameras.rays())
    along = -(origins * directions).sum(-1)
    square_root = along**2 - ((origins**2).sum(-1) - 1)
    hit = square_root > 0
    assert (seen.mask != hit).sum() <= 0.01 * hit.sum()  # facets lie inside the sphere
    sure = seen.mask & (square_root > 0.01)
    depth = along - np.sqrt(np.maximum(square_root, 0))
    assert np.abs(along_rays(seen, cameras) - depth)[sure].max() < 0.02
    normals = unit(interpolate(vertices, faces, seen))
    exact = origins + depth[..., None] * directions
    assert (normals * exact).sum(-1)[sure].min() > 0.999
    assert np.all(np.isinf(seen.z[~seen.mask])) and np.all(seen.face[~seen.mask] == -1)
    assert not seen.bary[~seen.mask].any() and np.allclose(seen.bary[seen.mask].sum(-1), 1, atol=1e-6)


def test_a_square_ahead_covers_the_pixels_that_its_size_says():
    """Half height tan(fov/2) * distance fills the picture; the square takes half of it, edges on pixel borders."""
    distance, fov, size = 2.0, 1.0, 32
    vertices, faces, _ = square(half=math.tan(fov / 2) * distance / 2)
    cameras = orbit(1, 0.0, distance, fov, size, size)
    seen = seen_by(cameras, vertices, faces)
    wanted = np.zeros((size, size), bool)
    wanted[8:24, 8:24] = True
    assert np.array_equal(seen.mask[0], wanted)
    assert np.allclose(seen.z[0][wanted], distance, atol=1e-5)


# ---------------------------------------------------------------- every pixel once

GRID = st.integers(-2 * 256, 18 * 256).map(lambda k: k / 256)
"""Places on the grid of subpixels and a little outside of 16 x 16 pixels, pixel centres and borders among them."""
CENTRES = st.integers(0, 15).map(lambda k: k + 0.5)
PLACES = st.lists(st.tuples(st.one_of(GRID, CENTRES), st.one_of(GRID, CENTRES)), min_size=4, max_size=14, unique=True)


@given(PLACES)
@settings(max_examples=60)
def test_triangles_that_fill_a_region_cover_each_pixel_once(places):
    """Whatever the triangles, edges and corners on pixel centres too."""
    points = np.array(places)
    if np.linalg.matrix_rank(points - points[0]) < 2:
        return
    faces = Delaunay(points).simplices
    uv = np.stack([points[:, 0] / 16, 1 - points[:, 1] / 16], axis=1)
    alone = sum(rasterise_uv(uv, faces[k : k + 1], 16).mask.astype(int) for k in range(len(faces)))
    assert alone.max(initial=0) <= 1
    assert np.array_equal(alone == 1, rasterise_uv(uv, faces, 16).mask)
    assert not (alone[_inside(points, 1e-9)] == 0).any()
    assert not alone[~_inside(points, -1e-9)].any()


def _inside(points, margin):
    """(16, 16): pixel centres that lie inside the hull, farther than `margin` from its border."""
    centres = np.arange(16) + 0.5
    x, y = np.meshgrid(centres, centres)
    flat = np.stack([x.ravel(), y.ravel(), np.ones(256)])
    planes = Delaunay(points, qhull_options="Qbb Qc Qz").convex_hull
    middle = points.mean(0)
    inside = np.ones(256, bool)
    for a, b in points[planes]:
        line = np.array([a[1] - b[1], b[0] - a[0], a[0] * b[1] - a[1] * b[0]]) / np.linalg.norm(b - a)
        line *= np.sign(line @ [*middle, 1])
        inside &= line @ flat > margin
    return inside.reshape(16, 16)


@given(st.floats(-1.5, 1.5), st.floats(-3, 3), st.floats(0.02, 4), st.integers(0, 10**6))
@settings(max_examples=40)
def test_a_closed_surface_around_the_camera_has_no_gap(elevation, azimuth, distance, seed):
    """From the inside every pixel sees it; part of it is behind the camera and crosses the near plane."""
    vertices, faces = sphere(2, radius=5.0)
    vertices = vertices * np.random.default_rng(seed).uniform(0.9, 1.1, (len(vertices), 1))
    seen = seen_by(orbit(1, elevation, distance, 2.0, 24, 24, azimuth=azimuth), vertices, faces)
    assert seen.mask.all()


def test_neighbours_share_no_pixel_and_leave_none_also_in_perspective():
    """A tilted plane of many triangles that runs below the camera and through the near plane."""
    n = 9
    x, y = np.meshgrid(np.linspace(-6, 6, n), np.linspace(-6, 6, n))
    bend = np.random.default_rng(0).uniform(-0.2, 0.2, (2, n, n))
    vertices = np.stack([x + bend[0], y + bend[1], np.full_like(x, -0.7)], -1).reshape(-1, 3)
    k = np.arange(n * n).reshape(n, n)
    a, b, c, d = k[:-1, :-1].ravel(), k[:-1, 1:].ravel(), k[1:, 1:].ravel(), k[1:, :-1].ravel()
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    cameras = orbit(1, 0.05, 0.5, 1.2, 40, 40)
    alone = sum(seen_by(cameras, vertices, faces[i : i + 1]).mask.astype(int) for i in range(len(faces)))
    whole = seen_by(cameras, vertices, faces)
    assert alone.max() == 1 and np.array_equal(alone[0] == 1, whole.mask[0])
    _, directions = cameras.rays()
    place = cameras.position[0, :2] + (-0.7 - cameras.position[0, 2]) / directions[0, ..., 2:] * directions[0, ..., :2]
    on_it = ((place.abs() < 5).all(-1) & (directions[0, ..., 2] < -0.02)).numpy()
    assert on_it.sum() > 200 and whole.mask[0][on_it].all()


# ---------------------------------------------------------------- rules


def test_of_equally_far_faces_the_first_is_seen():
    vertices, faces, _ = square()
    cameras = orbit(1, 0.2, 3.0, 0.7, 24, 24, azimuth=0.3)
    twice = seen_by(cameras, vertices, np.concatenate([faces, faces, faces[::-1]]))
    once = seen_by(cameras, vertices, faces)
    assert np.array_equal(twice.face, once.face) and np.array_equal(twice.bary, once.bary)


def test_the_nearer_face_hides_the_farther_in_any_order():
    vertices = np.concatenate([square(0.3)[0], square(-0.3)[0]])
    front, back = np.array([[0, 1, 2], [0, 2, 3]]), np.array([[4, 5, 6], [4, 6, 7]])
    cameras = orbit(1, 0.0, 3.0, 0.5, 24, 24)
    one = seen_by(cameras, vertices, np.concatenate([front, back]))
    other = seen_by(cameras, vertices, np.concatenate([back, front]))
    assert one.mask.all() and one.face.max() == 1 and other.face.min() == 2
    assert np.array_equal(one.z, other.z)


def test_what_is_nearer_than_the_near_plane_is_cut_off_exactly():
    """A strip along the viewing axis, below it: the pixel in which it begins tells where it was cut."""
    vertices = np.array([[5, -1, -0.5], [5, 1, -0.5], [-5, 1, -0.5], [-5, -1, -0.5]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    cameras = orbit(1, 0.0, 2.0, 1.5, 200, 40)
    for near in (0.6, 0.9, 1.7):
        seen = seen_by(cameras, vertices, faces, near=near)
        z = seen.z[0][seen.mask[0]]
        assert z.min() >= near * 0.999 and z.min() == pytest.approx(near, rel=0.02)
        lowest = np.flatnonzero(seen.mask[0].any(1)).max()
        assert lowest + 0.5 == pytest.approx(100 + 0.5 / near * float(cameras.K[0, 1, 1]), abs=1)
    assert not seen_by(cameras, vertices + [10, 0, 0], faces).mask.any()  # all of it behind


def test_faces_without_area_and_empty_meshes_cover_nothing():
    vertices, faces, _ = square()
    cameras = orbit(1, 0.0, 3.0, 0.7, 16, 16)
    for nothing in (np.array([[0, 0, 1], [2, 2, 2]]), np.zeros((0, 3), int)):
        assert not seen_by(cameras, vertices, nothing).mask.any()
    edge_on = seen_by(orbit(1, 0.0, 3.0, 0.7, 16, 16, azimuth=math.pi / 2), vertices, faces)
    assert not edge_on.mask.any()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda v, f: (v, f + 2), "vertices 2 to 5, but there are 4"),
        (lambda v, f: (v, f - 1), "vertices -1"),
        (lambda v, f: (v * np.nan, f), "not finite"),
        (lambda v, f: (v[:, :2], f), "points"),
    ],
)
def test_a_broken_mesh_is_said_in_one_sentence(broken, words):
    vertices, faces, _ = square()
    with pytest.raises(ConfigError, match=words):
        seen_by(view(), *broken(vertices, faces))
    with pytest.raises(ConfigError, match="at least one pixel"):
        rasterise(vertices, faces, np.eye(4)[None], 0.7, 0)
    with pytest.raises(ConfigError, match="c2w"):
        rasterise(vertices, faces, np.eye(4), 0.7, 8)


def test_each_view_is_what_it_would_be_alone():
    vertices, faces = box()
    cameras = view(3, size=40)
    together = seen_by(cameras, vertices, faces)
    for v in range(3):
        alone = seen_by(cameras.select([v]), vertices, faces)
        assert np.array_equal(alone.face[0], together.face[v]) and np.array_equal(alone.bary[0], together.bary[v])


# ---------------------------------------------------------------- textures


def test_uv_is_perspective_correct():
    """On a square seen very much from the side, uv must be linear on the square, not in the picture."""
    vertices, faces, uv = square()
    cameras = orbit(1, 0.5, 2.2, 1.0, 48, 48, azimuth=1.2)
    seen = seen_by(cameras, vertices, faces)
    place, where = interpolate(vertices, faces, seen), interpolate(uv, faces, seen)
    mask = seen.mask
    assert mask.sum() > 200
    assert np.allclose(where[mask], place[mask][:, 1:] / 2 + 0.5, atol=1e-6)
    origins, directions = (t.numpy() for t in cameras.rays())
    exact = origins - (origins[..., :1] / directions[..., :1]) * directions
    inner = mask & (np.abs(where - 0.5).max(-1) < 0.49)  # not held at a border
    assert np.allclose(place[inner], exact[inner], atol=1e-5)
    depths = seen.z[mask]
    assert depths.max() / depths.min() > 1.5  # or the test would prove little


def test_corners_may_have_their_own_attribute():
    vertices, faces, uv = square()
    seen = seen_by(view(), vertices, faces)
    assert np.array_equal(interpolate(uv, faces, seen), interpolate(uv[faces], None, seen))
    by_vertex, by_corner = rasterise_uv(uv, faces, 16), rasterise_uv(uv[faces], None, 16)
    assert np.array_equal(by_vertex.face, by_corner.face) and np.array_equal(by_vertex.bary, by_corner.bary)


def test_v_runs_upwards_in_the_texture_and_its_picture():
    """Upper row red, lower row blue, right column brighter: so it must look to the camera in front."""
    vertices, faces, uv = square()
    texture = np.array([[[0.5, 0, 0], [1, 0, 0]], [[0, 0, 0.5], [0, 0, 1]]], np.float32)
    cameras = orbit(1, 0.0, 4.0, 0.5, 32, 32)
    rgb = render(vertices, faces, cameras.c2w.numpy(), 0.5, 32, uv, texture).rgb[0]
    assert rgb[6, 6] == pytest.approx([0.5, 0, 0], abs=0.01) and rgb[6, 25] == pytest.approx([1, 0, 0], abs=0.01)
    assert rgb[25, 6] == pytest.approx([0, 0, 0.5], abs=0.01) and rgb[25, 25] == pytest.approx([0, 0, 1], abs=0.01)
    owner = rasterise_uv(np.array([[0, 0.5], [1, 0.5], [1, 1], [0, 1.0]]), faces, 8)
    assert owner.mask[:4].all() and not owner.mask[4:].any()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=30)
def test_texel_centres_read_back_their_texel(height, width, seed):
    texture = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    u, v = np.meshgrid((np.arange(width) + 0.5) / width, 1 - (np.arange(height) + 0.5) / height)
    assert np.allclose(sample(texture, np.stack([u, v], -1)), texture, atol=1e-4)
    full = rasterise_uv(square()[2], square()[1], (height, width))
    assert full.mask.all()
    assert np.allclose(interpolate(square()[2], square()[1], full), np.stack([u, v], -1), atol=1e-5)


def test_supersampling_is_the_mean_of_a_finer_picture():
    vertices, faces = sphere(2)
    cameras = view(2, size=24)
    of = (vertices, faces, cameras.c2w.numpy(), cameras.fov.numpy())
    colours = (vertices + 1) / 2
    fine = render(*of, 96, colours, background=(0.1, 0.2, 0.3), supersample=1)
    small = render(*of, 24, colours, background=(0.1, 0.2, 0.3), supersample=4)
    assert np.allclose(small.rgb, fine.rgb.reshape(2, 24, 4, 24, 4, 3).mean((2, 4)), atol=1e-6)
    assert np.allclose(small.alpha, fine.alpha.reshape(2, 24, 4, 24, 4).mean((2, 4)), atol=1e-6)
    assert small.rgb[0, 0, 0] == pytest.approx([0.1, 0.2, 0.3]) and small.alpha[0, 0, 0] == 0
    assert ((small.alpha > 0) & (small.alpha < 1)).any()


@settings(max_examples=20, deadline=None)
@given(
    steep=st.floats(-1.5, 1.5),
    turn=st.floats(0, 6.2),
    half=st.floats(0.3, 2),
    width=st.integers(5, 40),
    near=st.booleans(),
)
def test_a_pixel_of_parallel_rays_sees_what_its_ray_meets(
    steep: float, turn: float, half: float, width: int, near: bool
) -> None:
    """Places in the pixels lie on the rays of ``Cameras``, half a pixel included, as far away as the depth says; and
    ``project`` brings them back to the middle of their pixels. What is before the camera's plane is cut off."""
    mesh = sphere(1, 0.7)
    vertices, faces = np.asarray(mesh[0]), np.asarray(mesh[1])
    one = torch.ones(1)
    at = Cameras(
        orbit_c2w(steep * one, turn * one, (0.1 if near else 2.0) * one),
        Projection.orthographic(half * one, 24, width),
        24,
        width,
    )
    found = rasterise_views(vertices, faces, at)
    origins, directions = at.rays()
    places, mask = interpolate(vertices, faces, found), found.mask
    met = (origins + directions * torch.from_numpy(found.z)[..., None]).numpy()
    np.testing.assert_allclose(places[mask], met[mask], atol=2e-2 if near else 5e-3)
    assert found.z.min() >= 1e-2 - 1e-6
    pixels, depth = at.project(torch.from_numpy(places[mask]))
    rows, columns = np.nonzero(mask[0])
    expected = np.stack([columns, rows], 1) + 0.5
    np.testing.assert_allclose(pixels[0].numpy(), expected, atol=0.02)
    np.testing.assert_allclose(depth[0].numpy(), found.z[mask], atol=1e-5)
