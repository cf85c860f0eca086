from dataclasses import replace

import pytest
import torch

from tests.support import box_room
from tests.support.errors import refused
from tests.support.tiny_mvdiffusion import wall
from threedgen.geometry import warp
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import Poses, orbit_c2w, world_to_camera
from threedgen.systems.texture.frames import depth_of_mesh


def orbit(count: int = 3) -> Cameras:
    angle = torch.linspace(0.1, 0.6, count, dtype=torch.float64)
    c2w = orbit_c2w(0.3 * angle, angle, torch.full_like(angle, 2.5))
    return Cameras(c2w, Projection.perspective(0.5 + angle, 12, 16), 12, 16)


def test_project_unproject_and_reproject_match_cameras() -> None:
    cameras = orbit()
    K, c2w = warp.to_opencv(cameras)
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
    pixels, depth = cameras.project(points)
    for n in range(len(cameras)):
        projected, z = warp.project(points, K[n], c2w[n])
        torch.testing.assert_close(projected + 0.5, pixels[n], rtol=0, atol=1e-4)
        torch.testing.assert_close(z, depth[n])
        torch.testing.assert_close(warp.unproject(pixels[n] - 0.5, depth[n], K[n], c2w[n]), points)
    assert cameras.K[0, 0, 2] == 8  # to_opencv must not modify its input
    (source, z), (target, z_target) = (warp.project(points, K[n], c2w[n]) for n in (0, 2))
    projected, depth = warp.reproject(source, z, K[0], c2w[0], K[2], c2w[2])
    torch.testing.assert_close(projected, target, rtol=0, atol=1e-4)
    torch.testing.assert_close(depth, z_target, rtol=0, atol=1e-4)
    unknown, _ = warp.reproject(source, torch.zeros_like(z), K[0], c2w[0], K[2], c2w[2])
    assert (unknown == warp.INVALID_PIXEL).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_sample_is_exact_at_pixel_centres_and_zero_outside(size: tuple[int, int], dtype: torch.dtype) -> None:
    image = torch.randn(2, 3, *size, dtype=dtype)
    pixels = warp.pixel_grid(*size).expand(2, -1, -1, -1)
    torch.testing.assert_close(warp.sample(image, pixels), image, rtol=1e-5, atol=1e-5)
    for outside in (pixels + 9, pixels + 1e30, pixels * torch.nan):
        assert not warp.sample(image, outside).any()
    assert not warp.inside(pixels + 9, *size).any() and warp.inside(pixels, *size).all()


def test_sample_is_bilinear_and_sample_nearest_rounds() -> None:
    ramp = (warp.pixel_grid(6, 8) * torch.tensor([1.0, 10.0])).sum(-1)[None, None].float()
    at = torch.tensor([[[[2.25, 3.5], [6.5, 0.125]]]])
    torch.testing.assert_close(warp.sample(ramp, at).flatten(), torch.tensor([37.25, 7.75]))
    assert warp.sample_nearest(ramp[0, 0], torch.tensor([[2.3, 3.4], [7.6, 1], [-0.4, 1]])).tolist() == [32, 0, 10]


SIZE = (24, 32)


def depth_of(cameras: Cameras) -> torch.Tensor:
    return depth_of_mesh(box_room.scene(), cameras)


def test_overlap_fractions_of_a_wall() -> None:
    walk = wall(views=4, width=48, step=0.5)
    overlaps = warp.overlap_fractions(walk.depth, walk.c2w, walk.K)
    torch.testing.assert_close(overlaps, overlaps.T)
    expected = 1 - (torch.arange(4)[:, None] - torch.arange(4)).abs() * 6 / 48  # 6 of 48 pixels per step
    torch.testing.assert_close(overlaps, expected.double(), rtol=0, atol=0.021)  # tolerance: one border column
    # in a slightly enlarged view the last column and row count as visible, the first do not, as in MVDiffusion
    walk = wall(views=2, step=0.0)
    walk.c2w[1, 2, 3] = 2 - 2 / 1.02  # towards the wall, two metres away
    assert warp.overlap_fractions(walk.depth, walk.c2w, walk.K)[0, 1] == pytest.approx(47 / 48 * 31 / 32)


def test_key_frames_have_the_requested_overlap() -> None:
    cameras = box_room.look(48, SIZE)
    depth = depth_of(cameras)
    keys = warp.key_frames(depth, cameras, 0.65)
    assert keys[0] == 0 and 8 < len(keys) < 24
    for a, b in zip(keys, keys[1:], strict=False):
        assert warp.overlap(depth, cameras, a, b) >= 0.65 > warp.overlap(depth, cameras, a, b + 1)
    opposite = cameras.select([0, 24])
    with_behind = warp.overlap_fractions(depth[[0, 24]], opposite.c2w, opposite.K, behind=True)
    assert warp.overlap(depth, cameras, 0, 24) < 0.1 < with_behind[0, 1]


@pytest.mark.parametrize("steps", [24, 360])
@pytest.mark.parametrize("rendered", [True, False])
def test_check_pose_convention_detects_inverted_poses(rendered: bool, steps: int) -> None:
    """Test fast and slow paths; on slow ones adjacent frames agree under both conventions."""
    path = box_room.look(steps, SIZE).select(warp.spread_pairs(24))
    cameras = {"c2w": path, "w2c": replace(path, c2w=world_to_camera(path.c2w))}
    depth = depth_of(path)

    def correct(poses: Poses) -> tuple[torch.Tensor, Cameras]:
        return depth_of(cameras[poses]) if rendered else depth, cameras[poses]

    def inverted(poses: Poses) -> tuple[torch.Tensor, Cameras]:
        return correct("w2c" if poses == "c2w" else "c2w")

    warp.check_pose_convention(correct, "c2w", "a.json")
    with refused("", "a.json", "Set poses=c2w"):
        warp.check_pose_convention(correct, "w2c", "a.json")
    with refused("path", "a.json", "Set poses=w2c"):
        warp.check_pose_convention(inverted, "c2w", "a.json", "path")
