"""Condition maps of cameras and surfaces."""

from math import pi

import pytest
import torch
from torch.nn.functional import normalize

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.control_maps import geometry_control, position_control, ray_control, view_rays
from threedgen.geometry.poses import orbit_c2w


def test_view_rays_of_orbit_point_against_position() -> None:
    c2w = orbit_c2w(torch.tensor([0.0, 0.6]), torch.tensor([0.0, 2.0]), torch.tensor([1.5, 3.0]))
    rays = view_rays(c2w)
    torch.testing.assert_close(rays[:, :3], -rays[:, 3:], atol=1e-6, rtol=0)
    torch.testing.assert_close(ray_control(rays[0]), torch.tensor([0.0, 0.5, 0.5, 1.0, 0.5, 0.5]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("parallel", [False, True])
def test_project_inverts_unproject(parallel: bool) -> None:
    c2w = orbit_c2w(torch.tensor([0.2, -0.4]), torch.tensor([0.5, pi]), torch.full((2,), 2.0))
    make = Projection.orthographic if parallel else Projection.perspective
    cameras = Cameras(c2w, make(torch.full((2,), 0.8), 5, 7), 5, 7)
    depth = 1 + torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    pixels, found = cameras.project(cameras.unproject(depth).flatten(1, 2))
    torch.testing.assert_close(found, depth.flatten(1), atol=1e-5, rtol=0)
    centres = torch.cartesian_prod(torch.arange(5), torch.arange(7)).flip(1) + 0.5
    torch.testing.assert_close(pixels, centres.expand(2, -1, -1), atol=1e-4, rtol=0)


def test_geometry_control_scales_clamps_and_masks() -> None:
    points = torch.tensor([-0.5, 0.25, 0.9]).expand(1, 2, 2, 3)
    normals = normalize(torch.tensor([0.0, 0.0, -2.0]), dim=0).expand(1, 2, 2, 3)
    mask = torch.tensor([[[True, False], [False, False]]])
    found = geometry_control(points, normals, mask)
    torch.testing.assert_close(found[0, :, 0, 0], torch.tensor([0.0, 0.75, 1.0, 0.5, 0.5, 0.0]))
    assert (found.flatten(2)[..., 1:] == 0.5).all()
    other = position_control(points, mask, offset=0.5, scale=2.0)
    torch.testing.assert_close(other[0, :, 0, 0], torch.tensor([0.0, 0.375, 0.7]))
    assert (other.flatten(2)[..., 1:] == 0.25).all()
