"""Keys of correspondence-aware attention: positions in other views, masks, neighbours."""

from math import pi

import pytest
import torch

from tests.support.tiny_mvdiffusion import ring, tiny_model, wall
from threedgen.geometry import panorama
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.warp import pixel_grid
from threedgen.guidance.priors.mvdiffusion.geometry import (
    DepthGeometry,
    PanoramaGeometry,
    Scenes,
    overlap_neighbours,
    token_pixels,
)
from threedgen.guidance.priors.mvdiffusion.inputs import depth_channels

CPU = torch.device("cpu")


def test_panorama_neighbours_are_cyclic() -> None:
    assert [ring(4).neighbours(n) for n in (0, 3)] == [[3, 1], [2, 0]]
    assert ring(2).neighbours(0) == [1, 1]  # on both sides


@pytest.mark.parametrize("k", [1, 3, 5])
def test_keys_are_a_square_around_counterpart(k: int) -> None:
    keys = ring(8, k=k).keys(8, 8, CPU)[3]
    assert keys.places.shape == (2, 64, k * k, 2) and keys.count == 2 * k * k
    middle = ring(8, k=1).keys(8, 8, CPU)[3]
    around = keys.places - middle.places
    assert around.unflatten(2, (k, k))[0, 5, :, 0, 0].tolist() == pytest.approx(list(range(-(k // 2), k // 2 + 1)))
    torch.testing.assert_close(keys.relation[:, :, k * k // 2], torch.zeros(2, 64, 2), rtol=0, atol=1e-5)


def test_first_yaw_changes_nothing() -> None:
    for one, other in zip(ring(8).keys(4, 4, CPU), ring(8, first_yaw=1.234).keys(4, 4, CPU), strict=True):
        torch.testing.assert_close(one.mask, other.mask)
        torch.testing.assert_close(one.relation, other.relation, rtol=1e-4, atol=1e-4)


def test_non_square_images_use_reference_scale() -> None:
    K, R = panorama.intrinsics(pi / 2, 64, 96), torch.eye(3).expand(2, 3, 3)
    keys = PanoramaGeometry(K, R, (64, 96), k=1).keys(8, 12, CPU)[0]
    torch.testing.assert_close(keys.places[0, :, 0] + 0.5, token_pixels(8, 12, 8).float() / 12)
    torch.testing.assert_close(keys.relation, torch.zeros_like(keys.relation), rtol=0, atol=1e-5)


def test_points_at_infinity_are_masked_with_finite_relation() -> None:
    K = panorama.intrinsics(pi / 2, 65, 65)  # pixel 32, the middle, is at infinity for a camera at right angles
    R = torch.stack([panorama.rotation(0), panorama.rotation(pi / 2).round()])
    keys = PanoramaGeometry(K, R, (65, 65)).keys(1, 1, CPU)[0]
    assert not keys.places.isfinite().all() and not keys.mask.any() and keys.relation.isfinite().all()


def test_keys_are_cached_by_size() -> None:
    geometry = ring(8)
    assert geometry.keys(4, 4, CPU) is geometry.keys(4, 4, CPU)
    assert geometry.keys(4, 4, CPU) is not geometry.keys(8, 8, CPU)


def test_missing_depth_is_masked() -> None:
    whole = wall(views=2)
    depth = whole.depth.clone()
    depth[0, :16], depth[1, :, 24:] = 0, 0
    keys = DepthGeometry(depth, whole.c2w, whole.K).keys(4, 6, CPU)[0]
    mask = keys.mask[0, :, 0].view(4, 6)
    assert not mask[:2].any() and mask[2:, :3].all() and not mask[2:, 4:].any()
    assert (keys.relation[0, :, 0, 0].view(4, 6)[mask == 0] > 1e5).all()


@pytest.mark.parametrize("unknown", [torch.nan, torch.inf, -1.0])
def test_invalid_depth_counts_as_missing(unknown: float) -> None:
    whole = wall(views=2)
    depth, gaps = whole.depth.clone(), whole.depth.clone()
    depth[0, :16], gaps[0, :16] = unknown, 0
    found, expected = (DepthGeometry(each, whole.c2w, whole.K) for each in (depth, gaps))
    assert torch.equal(found.overlap, expected.overlap)
    for one, other in zip(found.keys(4, 6, CPU), expected.keys(4, 6, CPU), strict=True):
        assert all(map(torch.equal, one.tables, other.tables))
    assert torch.equal(depth_channels(depth, 4, 6), depth_channels(gaps, 4, 6))


def test_points_behind_camera_count_only_for_released_weights() -> None:
    K, c2w = panorama.intrinsics(pi / 2, 32, 32), torch.eye(4).double().repeat(2, 1, 1)
    c2w[1, :3, :3] = panorama.rotation(pi)  # back to back
    for released in (True, False):
        geometry = DepthGeometry(torch.full((2, 32, 32), 2.0), c2w, K, released=released)
        assert (geometry.overlap[0, 1] > 0.9) == released and geometry.keys(4, 4, CPU)[0].mask.any() == released
    for encoding in ("reference", "capped"):
        model = tiny_model("depth")
        model.multiview.encoding = encoding
        at = Cameras(opencv_axes(c2w.float()), Projection(K.float().expand(2, 3, 3)), 32, 32)
        geometry = model.geometry(at, torch.full((2, 32, 32), 2.0))
        assert geometry.released == (encoding == "reference")


def test_depth_relation_of_turned_camera() -> None:
    K, c2w = panorama.intrinsics(pi / 2, 64, 64), torch.eye(4).double().repeat(2, 1, 1)
    c2w[1, :3, :3] = panorama.rotation(0.5)
    pixels = torch.cat([pixel_grid(64, 64), torch.ones(64, 64, 1)], -1).double()
    directions = torch.einsum("fij,jk,hwk->fhwi", c2w[:, :3, :3], K.double().inverse(), pixels)
    depth = torch.where(directions[..., 2] > 0, 2 / directions[..., 2], 0.0)  # of a wall in front of the first
    right, released = (DepthGeometry(depth, c2w, K, 0.3, how).keys(8, 8, CPU)[0] for how in (False, True))
    seen = right.mask.bool()
    assert seen.sum() > 20 and right.relation[..., 0][seen].max() < 0.1 < released.relation[..., 0][seen].mean()


def test_overlap_neighbours_fall_back_to_order() -> None:
    overlap = torch.tensor([[1, 0.4, 0, 0.1], [0.4, 1, 0.3, 0], [0, 0.3, 1, 0], [0.1, 0, 0, 1]])
    assert overlap_neighbours(overlap, 0.3) == [[1], [0], [1, 3], [2]]
    assert overlap_neighbours(torch.ones(1, 1)) == [[]]


def test_scenes_have_the_keys_of_all() -> None:
    both = Scenes([wall(3), wall(3, step=0.5)])
    assert both.n_view == 3 and len(both.keys(4, 6, CPU)) == 6
