from math import pi

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from threedgen.geometry import panorama
from threedgen.geometry.warp import pixel_grid

FOV = pi / 2


def colours(directions: Tensor) -> Tensor:
    """Return smooth colours (..., 3), different in every direction (..., 3)."""
    unit = normalize(directions, dim=-1)
    return 0.5 + 0.4 * torch.sin(2 * unit + torch.tensor([0.3, 1.0, 2.0], dtype=unit.dtype))


def photograph(R: Tensor, size: int, fov: float = FOV) -> Tensor:
    """Render views (V, 3, size, size) of the world of ``colours``."""
    K = panorama.intrinsics(fov, size, size)
    rays = pad(pixel_grid(size, size), (0, 1), value=1.0) @ torch.linalg.inv(K).T
    return colours(rays @ R.mT[:, None]).permute(0, 3, 1, 2).float()


def test_render_from_views_replaces_oblique_pixels() -> None:
    R, K = panorama.ring(8), panorama.intrinsics(FOV, 64, 64)
    truth = photograph(R, 64)
    damaged = truth.clone()
    damaged[3, :, :, :16] = 0.0  # more than 22.5 degrees off its axis: tan(22.5) 32 = 13 columns from the middle
    damaged[5, :, :, -16:] = 1.0
    torch.testing.assert_close(panorama.render_from_views(damaged, K, R, K, R, 64, 64), truth, atol=0.01, rtol=0)


def test_stitch_matches_the_world_without_seams() -> None:
    R, size = panorama.ring(8), 96
    found, weights = panorama.stitch(photograph(R, size), panorama.intrinsics(FOV, size, size), R, 64, 128)
    expected = colours(panorama.equirectangular_rays(64, 128)).permute(2, 0, 1).float()
    covered = weights > 0
    assert (found - expected).abs()[:, covered].max() < 0.02
    assert covered[22:42].all() and not covered[:8].any() and not found[:, ~covered].any()
    assert (found[:, 20:44, 0] - found[:, 20:44, -1]).abs().max() < 0.05  # the left and right borders are adjacent


def test_equirectangular_views_match_the_world() -> None:
    image = colours(panorama.equirectangular_rays(256, 512)).permute(2, 0, 1).float()
    R = torch.cat([panorama.ring(5, 0.3), panorama.rotation(pi, 0.5)[None]])
    K = panorama.intrinsics(1.2, 40, 40)
    expected = photograph(R, 40, 1.2)
    for part in (image, image[:, 40:-40]):
        torch.testing.assert_close(panorama.equirectangular_views(part, K, R, 40, 40), expected, rtol=0, atol=0.01)


def test_covered_rows_are_symmetric_and_complete() -> None:
    weights = torch.ones(10, 6)
    weights[:2], weights[9, 3], weights[0, 0] = 0, 0, 0
    assert panorama.covered_rows(weights) == slice(2, 8)
    assert panorama.covered_rows(torch.ones(5, 2)) == slice(0, 5)
