"""Cameras: rays, projection, resizing and selection, perspective and orthographic."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import look_at
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


def test_orbit_starts_at_plus_x_and_turns_counter_clockwise():
    cameras = orbit(4, 0.0, 2.0, 0.7, 8, 8)
    expected = torch.tensor([[2.0, 0, 0], [0, 2, 0], [-2, 0, 0], [0, -2, 0]])
    torch.testing.assert_close(cameras.position, expected, atol=1e-6, rtol=0)
    # seen from the front, world +y is to the right in the image and +z is up
    pixels, _ = cameras.project(torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]))
    assert pixels[0, 0, 0] > 4 and pixels[0, 0, 1] == pytest.approx(4)
    assert pixels[0, 1, 1] < 4 and pixels[0, 1, 0] == pytest.approx(4)


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
