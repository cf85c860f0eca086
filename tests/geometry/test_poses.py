"""Poses: rigidity, orbits, look_at and conversions."""

from math import pi

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from threedgen.geometry.poses import look_at, orbit_array, orbit_c2w, world_to_camera, wrap_angle

FIXED = settings(derandomize=True, deadline=None, max_examples=60)
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
@given(st.floats(-1.5, 1.5), AZIMUTHS, DISTANCES)
def test_look_at_matches_orbit_c2w(elevation, azimuth, distance):
    c2w = orbit_c2w(one(elevation), one(azimuth), one(distance))
    result = look_at(c2w[:, :3, 3], torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))
    torch.testing.assert_close(result, c2w, atol=2e-5 * max(1, distance), rtol=0)


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


def test_orbit_array_computes_in_float64():
    rng = np.random.default_rng(0)
    azimuth = rng.uniform(-4, 4, 50)
    c2w = orbit_array(0.3, azimuth, 2.5)
    assert c2w.dtype == np.float32 and c2w.shape == (50, 4, 4)
    angles = (torch.from_numpy(x) for x in (np.full(50, 0.3), azimuth, np.full(50, 2.5)))
    assert np.array_equal(c2w, orbit_c2w(*angles).float().numpy())
    back = np.stack([np.cos(0.3) * np.cos(azimuth), np.cos(0.3) * np.sin(azimuth), np.full(50, np.sin(0.3))], axis=-1)
    assert np.array_equal(c2w[:, :3, 2], back.astype(np.float32))


def test_world_to_camera_inverts_poses():
    g = torch.Generator().manual_seed(0)
    position, centre = (torch.randn(8, 3, generator=g) for _ in range(2))
    c2w = look_at(position, centre, torch.randn(8, 3, generator=g))
    torch.testing.assert_close(world_to_camera(c2w) @ c2w, torch.eye(4).expand(8, 4, 4), atol=1e-5, rtol=0)
