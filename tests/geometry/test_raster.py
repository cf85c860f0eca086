import math

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay

from tests.support.brute_force import cross_triangles
from tests.support.errors import refused
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w
from threedgen.geometry.raster import NEAR, Buffers, interpolate, rasterise, rasterise_uv, rasterise_views
from threedgen.geometry.rigs import orbit
from threedgen.geometry.texture import fill, sample


def rasterised(cameras: Cameras, vertices, faces) -> Buffers:
    size = (cameras.height, cameras.width)
    return rasterise(vertices, faces, cameras.c2w.numpy(), cameras.fov.numpy(), size)


def sphere(subdivisions: int = 3, radius: float = 1.0):
    mesh = trimesh.creation.icosphere(subdivisions, radius)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def box():
    mesh = trimesh.creation.box((1.0, 0.8, 0.6))
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def square():
    """Create a square at x = 0 facing +x."""
    return np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1.0]]), np.array([[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize(("shape", "width"), [(box, 32), (lambda: sphere(2), 45)], ids=["box", "sphere"])
def test_rasterise_matches_ray_casting(shape, width):
    vertices, faces = shape()
    cameras = orbit(2, 0.5, 3.0, 0.7, 32, width, azimuth=0.4)
    buffers = rasterised(cameras, vertices, faces)
    origins, directions = (t.double().numpy().reshape(-1, 3) for t in cameras.rays())
    t, inside, _ = cross_triangles(vertices, faces, origins, directions)
    hits = np.where((inside >= 0) & (t > 0), t, np.inf)
    distance, face = hits.min(1), hits.argmin(1)
    reliable = np.nanmin(np.abs(inside), axis=1) > 0.02  # else within about 1/256 pixel of an edge, or grazing
    assert 0.5 < reliable.mean()
    assert np.array_equal(buffers.mask.ravel()[reliable], np.isfinite(distance)[reliable])
    assert (buffers.mask.ravel() != np.isfinite(distance)).sum() <= 2
    hit = reliable & np.isfinite(distance)
    assert hit.sum() > 100
    assert np.array_equal(buffers.face.ravel()[hit], face[hit])
    axis = -cameras.c2w[:, None, None, :3, 2]
    along_rays = buffers.z / (cameras.rays()[1] * axis).sum(-1).numpy()
    assert np.allclose(along_rays.ravel()[hit], distance[hit], atol=1e-5)
    points = interpolate(vertices, faces, buffers).reshape(-1, 3)
    assert np.allclose(points[hit], (origins + distance[:, None] * directions)[hit], atol=1e-4)
    assert np.all(np.isinf(buffers.z[~buffers.mask])) and np.all(buffers.face[~buffers.mask] == -1)
    assert not buffers.bary[~buffers.mask].any() and np.allclose(buffers.bary[buffers.mask].sum(-1), 1, atol=1e-6)


GRID = st.integers(-2 * 256, 18 * 256).map(lambda k: k / 256)
"""Subpixel grid in and around 16 x 16 pixels, including pixel centres and borders."""
CENTRES = st.integers(0, 15).map(lambda k: k + 0.5)
POINTS = st.lists(st.tuples(st.one_of(GRID, CENTRES), st.one_of(GRID, CENTRES)), min_size=4, max_size=14, unique=True)


@given(POINTS)
@settings(max_examples=60)
def test_rasterise_uv_triangulation_covers_each_pixel_once(points):
    points = np.array([*{*points, (-2.0, -2.0), (18.0, -2.0), (18.0, 18.0), (-2.0, 18.0)}])  # around all pixels
    faces = Delaunay(points).simplices
    uv = np.stack([points[:, 0] / 16, 1 - points[:, 1] / 16], axis=1)
    count = sum(rasterise_uv(uv, faces[k : k + 1], 16).mask.astype(int) for k in range(len(faces)))
    assert (count == 1).all() and rasterise_uv(uv, faces, 16).mask.all()


@given(st.floats(-1.5, 1.5), st.floats(-3, 3), st.floats(0.02, 4), st.integers(0, 10**6))
@settings(max_examples=40)
def test_rasterise_closed_surface_around_the_camera_has_no_gap(elevation, azimuth, distance, seed):
    """Part of the surface is behind the camera and crosses the near plane."""
    vertices, faces = sphere(2, radius=5.0)
    vertices = vertices * np.random.default_rng(seed).uniform(0.9, 1.1, (len(vertices), 1))
    buffers = rasterised(orbit(1, elevation, distance, 2.0, 24, 24, azimuth=azimuth), vertices, faces)
    assert buffers.mask.all()


def test_rasterise_clips_exactly_at_the_near_plane():
    """The first image row of a strip below the viewing axis shows at which depth it was clipped."""
    vertices = np.array([[5, -1, -0.5], [5, 1, -0.5], [-5, 1, -0.5], [-5, -1, -0.5]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    for near in (0.6, 0.9, 1.7):
        scale = NEAR / near  # of the scene
        cameras = orbit(1, 0.0, 2.0 * scale, 1.5, 200, 40)
        buffers = rasterised(cameras, vertices * scale, faces)
        z = buffers.z[0][buffers.mask[0]] / scale
        assert z.min() >= near * 0.999 and z.min() == pytest.approx(near, rel=0.02)
        lowest = np.flatnonzero(buffers.mask[0].any(1)).max()
        assert lowest + 0.5 == pytest.approx(100 + 0.5 / near * float(cameras.K[0, 1, 1]), abs=1)
    assert not rasterised(cameras, vertices + [10, 0, 0], faces).mask.any()  # entirely behind the camera


def test_rasterise_degenerate_and_empty_meshes_cover_nothing():
    vertices, faces = square()
    cameras = orbit(1, 0.0, 3.0, 0.7, 16, 16)
    for degenerate in (np.array([[0, 0, 1], [2, 2, 2]]), np.zeros((0, 3), int)):
        assert not rasterised(cameras, vertices, degenerate).mask.any()
    edge_on = rasterised(orbit(1, 0.0, 3.0, 0.7, 16, 16, azimuth=math.pi / 2), vertices, faces)
    assert not edge_on.mask.any()


@pytest.mark.parametrize(
    ("change", "values"),
    [
        (lambda v, f: {"faces": f + 2}, ["2 to 5", "0 to 3"]),
        (lambda v, f: {"faces": f - 1}, ["-1 to 2", "0 to 3"]),
        (lambda v, f: {"vertices": v * np.nan}, ["NaN"]),
    ],
)
def test_rasterise_refuses_invalid_input(change, values):
    vertices, faces = square()
    arguments = {"vertices": vertices, "faces": faces, "c2w": np.eye(4)[None], "fov": 0.7, "size": 8}
    with refused(None, *values):
        rasterise(**arguments | change(vertices, faces))


@settings(max_examples=20, deadline=None)
@given(st.floats(-1.5, 1.5), st.floats(0, 6.2), st.floats(0.3, 2), st.integers(5, 40), st.booleans())
def test_rasterise_views_orthographic_matches_rays_and_project(elevation, azimuth, half_height, width, near) -> None:
    """With ``near``, the sphere extends in front of and behind the near plane."""
    vertices, faces = sphere(1, 0.7)
    c2w = orbit_c2w(*(torch.tensor([x]) for x in (elevation, azimuth, 0.1 if near else 2.0)))
    cameras = Cameras(c2w, Projection.orthographic(torch.tensor([half_height]), 24, width), 24, width)
    buffers = rasterise_views(vertices, faces, cameras)
    origins, directions = cameras.rays()
    points, mask = interpolate(vertices, faces, buffers), buffers.mask
    on_rays = (origins + directions * torch.from_numpy(buffers.z)[..., None]).numpy()
    np.testing.assert_allclose(points[mask], on_rays[mask], atol=2e-2 if near else 5e-3)
    assert buffers.z.min() > 0, "clipped at 0.01, up to the rounding of corners to 1/256 pixel"
    pixels, depth = cameras.project(torch.from_numpy(points[mask]))
    rows, columns = np.nonzero(mask[0])
    expected = np.stack([columns, rows], 1) + 0.5
    np.testing.assert_allclose(pixels[0].numpy(), expected, atol=0.02)
    np.testing.assert_allclose(depth[0].numpy(), buffers.z[mask], atol=1e-5)


def test_sample_is_bilinear_inside_and_constant_outside():
    texture = np.array([[[0.0], [1.0]], [[2.0], [3.0]]], np.float32)
    values = sample(texture, np.array([[0.5, 0.5], [0.375, 0.75], [0.0, 1.0], [1.0, 0.0], [-3.0, 9.0]]))
    assert values[:, 0].tolist() == pytest.approx([1.5, 0.25, 0.0, 3.0, 0.0])


def test_fill_uses_the_nearest_covered_texel():
    texture = np.zeros((6, 8, 1), np.float32)
    covered = np.zeros((6, 8), bool)
    covered[2, 1], covered[3, 6] = True, True
    texture[2, 1], texture[3, 6] = 1, 2
    filled = fill(texture, covered)[..., 0]
    assert (filled[:, :3] == 1).all() and (filled[:, 5:] == 2).all() and filled[2, 1] == 1
    with refused():
        fill(texture, covered & False)
