import json
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import box_room
from tests.support.errors import refused
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.cameras_file import read_cameras, write_cameras
from threedgen.geometry.poses import look_at, opencv_axes, orbit_c2w, world_to_camera, wrap_angle
from threedgen.geometry.rigs import orbit

FIXED = settings(derandomize=True, deadline=None, max_examples=60)


def random_cameras(seed: int, parallel: bool = False, count: int = 4) -> Cameras:
    """Create random cameras at distances 1 to 3 with non-square pixels, skew and an off-centre principal point."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=g)

    position = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1) * uniform(1, 3, 1)
    c2w = look_at(position, uniform(-0.2, 0.2, 3), torch.randn(count, 3, generator=g))
    K = torch.eye(3).repeat(count, 1, 1)
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 1] = uniform(10, 30), uniform(10, 30), uniform(-2, 2)
    K[:, 0, 2], K[:, 1, 2] = uniform(8, 12), uniform(4, 8)
    return Cameras(c2w, Projection(K, parallel), 12, 20)


@FIXED
@given(st.integers(0, 500), st.floats(0.5, 5), st.booleans())
def test_project_inverts_rays(seed, distance, parallel):
    cameras = random_cameras(seed, parallel)
    origins, directions = cameras.rays()
    assert origins.shape == directions.shape == (4, 12, 20, 3)
    pixels, depth = cameras.project((origins + distance * directions).flatten(1, 2))
    along = (directions * -cameras.c2w[:, None, None, :3, 2]).sum(-1).flatten(1)  # 1 for parallel rays
    torch.testing.assert_close(depth, distance * along, atol=1e-4, rtol=0)
    row, column = 3, 17
    expected = torch.tensor([column + 0.5, row + 0.5]).expand(4, 2)
    torch.testing.assert_close(pixels[:, row * 20 + column], expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(4, 12, 20))


def test_project_computes_in_float32_under_autocast():
    cameras, points = random_cameras(0), torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pixels, depth = cameras.project(points)
    expected = cameras.project(points)
    assert torch.equal(pixels, expected[0]) and torch.equal(depth, expected[1])


def test_orthographic_rays_are_parallel_and_one_pixel_apart():
    c2w = orbit(3, 0.4, 2.0, 0.7, 10, 30).c2w
    cameras = Cameras(c2w, Projection.orthographic(torch.tensor([0.5, 1.0, 2.0]), 10, 30), 10, 30)
    origins, directions = cameras.rays()
    axis = -cameras.c2w[:, None, None, :3, 2]
    torch.testing.assert_close(directions, axis.expand_as(directions), atol=1e-6, rtol=0)
    pixel = torch.tensor([0.1, 0.2, 0.4])  # world units: 2 x half the height / 10 rows
    for step in (origins.diff(dim=1), origins.diff(dim=2)):
        torch.testing.assert_close(step.norm(dim=-1), pixel[:, None, None].expand(step.shape[:3]), atol=1e-5, rtol=0)
    torch.testing.assert_close(origins.mean((1, 2)), cameras.position, atol=1e-5, rtol=0)
    # moving points along the axis changes only their depth
    points = torch.rand(3, 5, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    pixels, depth = cameras.project(points)
    farther, deeper = cameras.project(points + 3 * axis[:, 0])
    torch.testing.assert_close(farther, pixels, atol=1e-3, rtol=0)
    torch.testing.assert_close(deeper, depth + 3, atol=1e-5, rtol=0)
    with pytest.raises(ValueError):
        _ = cameras.fov


@pytest.mark.parametrize("parallel", [False, True])
def test_with_size_scales_pixels_and_select_keeps_projection(parallel):
    cameras = random_cameras(0, parallel, count=8)
    larger = cameras.with_size(24, 60)
    assert larger.rays()[0].shape == (8, 24, 60, 3)
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    (after, deep), (before, depth) = larger.project(points), cameras.project(points)
    torch.testing.assert_close(after, before * torch.tensor([3.0, 2.0]), atol=1e-3, rtol=1e-5)
    assert torch.equal(deep, depth)
    part = cameras.select(slice(4, 7)).to("cpu")
    assert len(part) == 3 and torch.equal(part.c2w, cameras.c2w[4:7])
    assert torch.equal(part.projection.K, cameras.projection.K[4:7]) and part.projection.parallel == parallel


SIZE = (24, 32)


def test_read_cameras_returns_what_was_written(tmp_path: Path) -> None:
    at, path = box_room.look(3, SIZE), tmp_path / "cameras.json"
    write_cameras(path, at, ["a.png", "b.png", "c.png"], ["red", "green", "blue"])
    found = read_cameras(path, "path")
    assert torch.equal(found.cameras.c2w, at.c2w) and torch.equal(found.cameras.K, at.K)
    assert (found.cameras.height, found.cameras.width) == SIZE
    assert found.files == ("a.png", "b.png", "c.png") and found.prompts == ("red", "green", "blue")


def test_read_cameras_converts_axes_poses_and_fov(tmp_path: Path) -> None:
    at, path = box_room.look(3, SIZE), tmp_path / "cameras.json"
    for axes, turned in (("opengl", at.c2w), ("opencv", opencv_axes(at.c2w))):
        for poses, matrices in (("c2w", turned), ("w2c", world_to_camera(turned))):
            path.write_text(json.dumps({"axes": axes, "c2w": matrices.tolist()}))
            found = read_cameras(path, "path", poses, SIZE, 70)
            torch.testing.assert_close(found.cameras.c2w, at.c2w)
            torch.testing.assert_close(found.cameras.K, at.K)
            assert found.files is None and found.prompts is None


EYE = np.eye(4).tolist()
PAIR = {"axes": "opengl", "c2w": [EYE] * 2}


@pytest.mark.parametrize(
    ("tree", "values"),
    [
        ("no", []),
        ([], []),
        ({"c2w": [EYE] * 2}, ["axes"]),
        ({"axes": "opengl", "c2w": [EYE]}, ["c2w", 2]),
        ({"axes": "opengl", "c2w": [EYE, EYE[:3]]}, ["c2w", "4 x 4"]),
        ({"axes": "opengl", "c2w": [EYE, (2 * np.eye(4)).tolist()]}, ["c2w[1]"]),
        ({"axes": "opengl", "c2w": [np.diag([1.0, 1, -1, 1]).tolist(), EYE]}, ["c2w[0]"]),
        (PAIR | {"fov": 180}, ["fov"]),
        (PAIR | {"K": np.eye(3).tolist()}, ["height", "width"]),
        (PAIR | {"height": 0, "width": 9}, ["height"]),
        (PAIR | {"K": [np.eye(3).tolist()] * 3, "height": 9, "width": 9}, ["K", 2]),
        (PAIR | {"K": [[]], "height": 9, "width": 9}, ["K", "3 x 3"]),
        (PAIR | {"height": 9}, ["height", "width"]),
        (PAIR | {"files": ["a.png"]}, ["files", 2]),
    ],
)
def test_read_cameras_refuses_invalid_files(tmp_path: Path, tree: Any, values: list[Any]) -> None:
    path = tmp_path / "cameras.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    with refused("path", path, *values):
        read_cameras(path, "path", size=SIZE, fov=70)


ELEVATIONS = st.floats(-pi / 2, pi / 2)
AZIMUTHS = st.floats(-10, 10)
DISTANCES = st.floats(0.2, 20)


def one(value: float) -> Tensor:
    return torch.tensor([value])


def assert_rigid(c2w: Tensor) -> None:
    rotation = c2w[:, :3, :3].double()
    eye = torch.eye(3, dtype=torch.float64).expand_as(rotation)
    torch.testing.assert_close(rotation @ rotation.mT, eye, atol=2e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(len(c2w)).double(), atol=2e-6, rtol=0)
    assert c2w[:, 3].tolist() == [[0, 0, 0, 1]] * len(c2w)


@FIXED
@given(ELEVATIONS, AZIMUTHS, DISTANCES)
def test_orbit_c2w_is_rigid_and_looks_at_the_origin(elevation, azimuth, distance):
    c2w = orbit_c2w(one(elevation), one(azimuth), one(distance))
    assert_rigid(c2w)
    assert float(c2w[0, :3, 3].norm()) == pytest.approx(distance, rel=1e-5)
    # the origin is at this distance along -z; image up never points down in the world
    target = c2w[0, :3, 3] - distance * c2w[0, :3, 2]
    torch.testing.assert_close(target, torch.zeros(3), atol=1e-5 * distance, rtol=0)
    assert float(c2w[0, 2, 1]) >= -1e-6 and abs(float(c2w[0, 2, 0])) < 1e-6


@FIXED
@given(st.tuples(*[st.floats(-1, 1)] * 3), st.floats(0.01, 5))
def test_look_at_along_up_is_rigid(direction, length):
    forward = torch.tensor([direction])
    if float(forward.norm()) < 0.1:
        return
    c2w = look_at(torch.zeros(1, 3), forward, length * forward)
    assert_rigid(c2w)
    cosine = -(c2w[0, :3, 2] * forward[0]).sum() / forward.norm()
    assert float(cosine) == pytest.approx(1, abs=1e-5)


@FIXED
@given(st.floats(-3, 3), st.integers(-3, 3), ELEVATIONS)
def test_wrap_angle_keeps_the_pose(azimuth, turns, elevation):
    shifted = one(azimuth + turns * 2 * pi)
    torch.testing.assert_close(wrap_angle(shifted), one(azimuth), atol=1e-5, rtol=0)
    first, second = (orbit_c2w(one(elevation), angle, one(1.0)) for angle in (one(azimuth), shifted))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
