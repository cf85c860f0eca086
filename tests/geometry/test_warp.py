"""Homographies, reprojection and sampling, compared with ``Cameras``."""

from math import pi

import pytest
import torch

from threedgen.geometry import panorama
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w
from threedgen.geometry.warp import (
    INVALID_PIXEL,
    apply_homography,
    homography,
    inside,
    pixel_grid,
    project,
    reproject,
    sample,
    sample_nearest,
    to_opencv,
    unproject,
)

GRID = pixel_grid(12, 16).flatten(0, 1)
K = panorama.intrinsics(pi / 3, 12, 16)


def orbit(count: int = 3) -> Cameras:
    angle = torch.linspace(0.1, 0.6, count, dtype=torch.float64)
    c2w = orbit_c2w(0.3 * angle, angle, torch.full_like(angle, 2.5))
    return Cameras(c2w, Projection.perspective(0.5 + angle, 12, 16), 12, 16)


def test_homography_is_invertible() -> None:
    R1, R2 = panorama.rotation(0.2, -0.1), panorama.rotation(0.7, 0.3)
    H = homography(K, R1, K, R2)
    mapped, front = apply_homography(H, GRID)
    assert front.all()
    torch.testing.assert_close(apply_homography(torch.linalg.inv(H), mapped)[0], GRID)
    torch.testing.assert_close(apply_homography(homography(K, R2, K, R1), mapped)[0], GRID)
    torch.testing.assert_close(apply_homography(homography(K, R1, K, R1), GRID)[0], GRID)


def test_apply_homography_half_turn_is_behind() -> None:
    _, front = apply_homography(homography(K, torch.eye(3).double(), K, panorama.rotation(pi)), GRID)
    assert not front.any()


def test_homography_yaw_moves_pixels_left_and_pitch_down() -> None:
    middle = torch.tensor([[7.5, 5.5]], dtype=torch.float64)
    start = torch.eye(3, dtype=torch.float64)
    right, _ = apply_homography(homography(K, start, K, panorama.rotation(0.2)), middle)
    up, _ = apply_homography(homography(K, start, K, panorama.rotation(0, 0.2)), middle)
    assert right[0, 0] < 7 and right[0, 1] == pytest.approx(5.5)
    assert up[0, 1] > 6 and up[0, 0] == pytest.approx(7.5)


def test_project_and_unproject_match_cameras() -> None:
    cameras = orbit()
    K, c2w = to_opencv(cameras)
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    pixels, depth = cameras.project(points)
    for n in range(len(cameras)):
        projected, z = project(points, K[n], c2w[n])
        torch.testing.assert_close(projected + 0.5, pixels[n], rtol=0, atol=1e-4)
        torch.testing.assert_close(z, depth[n])
        torch.testing.assert_close(unproject(pixels[n] - 0.5, depth[n], K[n], c2w[n]), points)
    assert cameras.K[0, 0, 2] == 8  # to_opencv must not modify its input


def test_reproject_finds_the_same_point() -> None:
    K, c2w = to_opencv(orbit())
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    (source, z), (target, z_target) = (project(points, K[n], c2w[n]) for n in (0, 2))
    projected, depth = reproject(source, z, K[0], c2w[0], K[2], c2w[2])
    torch.testing.assert_close(projected, target, rtol=0, atol=1e-4)
    torch.testing.assert_close(depth, z_target, rtol=0, atol=1e-4)
    unknown, _ = reproject(source, torch.zeros_like(z), K[0], c2w[0], K[2], c2w[2])
    assert (unknown == INVALID_PIXEL).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [(5, 7), (1, 7), (5, 1), (1, 1)])
def test_sample_is_exact_at_pixel_centres_and_zero_outside(size: tuple[int, int], dtype: torch.dtype) -> None:
    image = torch.randn(2, 3, *size, dtype=dtype)
    pixels = pixel_grid(*size).expand(2, -1, -1, -1)
    torch.testing.assert_close(sample(image, pixels), image, rtol=1e-5, atol=1e-5)
    for outside in (pixels + 9, pixels + 1e30, pixels * torch.nan):
        assert not sample(image, outside).any()
    assert not inside(pixels + 9, *size).any() and inside(pixels, *size).all()


def test_sample_is_bilinear_and_sample_nearest_rounds() -> None:
    ramp = (pixel_grid(6, 8) * torch.tensor([1.0, 10.0])).sum(-1)[None, None].float()
    at = torch.tensor([[[[2.25, 3.5], [6.5, 0.125]]]])
    torch.testing.assert_close(sample(ramp, at).flatten(), torch.tensor([37.25, 7.75]))
    assert sample_nearest(ramp[0, 0], torch.tensor([[2.3, 3.4], [7.6, 1], [-0.4, 1]])).tolist() == [32, 0, 10]
