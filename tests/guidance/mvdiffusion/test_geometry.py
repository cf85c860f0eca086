"""Which places of other views tokens attend to."""

from __future__ import annotations

from math import pi

import pytest
import torch

from tests.support.tiny_mvdiffusion import ring, tiny_model, wall
from threedgen.geometry import panorama
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.warp import pixel_grid
from threedgen.guidance.mvdiffusion.geometry import (
    DepthGeometry,
    PanoramaGeometry,
    Scenes,
    overlap_neighbours,
    token_pixels,
)
from threedgen.guidance.mvdiffusion.inputs import depth_channels
from threedgen.guidance.options import MVDiffusionConfig

CPU = torch.device("cpu")


def test_neighbours_of_a_panorama() -> None:
    assert [ring(4).neighbours(n) for n in (0, 3)] == [[3, 1], [2, 0]]
    assert ring(4, neighbours="all").neighbours(2) == [0, 1, 3]
    assert ring(2).neighbours(0) == [1, 1]  # on both sides


@pytest.mark.parametrize("k", [1, 3, 5])
def test_keys_are_a_square_around_the_counterpart(k: int) -> None:
    keys = ring(8, k=k).keys(8, 8, CPU)[3]
    assert keys.places.shape == (2, 64, k * k, 2) and keys.count == 2 * k * k
    middle = ring(8, k=1).keys(8, 8, CPU)[3]
    around = keys.places - middle.places
    assert around.unflatten(2, (k, k))[0, 5, :, 0, 0].tolist() == pytest.approx(list(range(-(k // 2), k // 2 + 1)))
    torch.testing.assert_close(keys.relation[:, :, k * k // 2], torch.zeros(2, 64, 2), rtol=0, atol=1e-5)


def test_the_square_is_odd() -> None:
    with pytest.raises(ValueError, match="odd"):
        ring(8, k=2)


def test_two_equal_cameras_see_each_token_in_its_place() -> None:
    K, size = panorama.intrinsics(pi / 2, 64, 64), (64, 64)
    keys = PanoramaGeometry(K, torch.eye(3).expand(2, 3, 3), size, k=1).keys(8, 8, CPU)[0]
    # s/2 in integer pixels, and no half pixel for it: as the released weights have it
    torch.testing.assert_close(keys.places[0, :, 0] + 0.5, (token_pixels(8, 8, 8) / 8).float())
    assert keys.mask.all()


def test_the_first_yaw_does_not_matter() -> None:
    for one, other in zip(ring(8).keys(4, 4, CPU), ring(8, first_yaw=1.234).keys(4, 4, CPU), strict=True):
        torch.testing.assert_close(one.mask, other.mask)
        torch.testing.assert_close(one.relation, other.relation, rtol=1e-4, atol=1e-4)


def test_all_others_see_what_the_ring_sees_and_none_is_behind() -> None:
    near, every = ring(8).keys(8, 8, CPU)[0], ring(8, neighbours="all").keys(8, 8, CPU)[0]
    for place, view in enumerate(near.views.tolist()):
        n = every.views.tolist().index(view)
        torch.testing.assert_close(near.places[place], every.places[n])
        assert (every.mask[n] <= near.mask[place]).all() and every.mask[n].any()
    assert not every.mask[every.views == 4].any()


def test_of_pictures_that_are_not_square_the_ring_is_that_of_the_reference() -> None:
    K, R = panorama.intrinsics(pi / 2, 64, 96), torch.eye(3).expand(2, 3, 3)
    pixels = token_pixels(8, 12, 8).float()
    for kind, step in (("all", 8), ("ring", 12)):
        keys = PanoramaGeometry(K, R, (64, 96), k=1, neighbours=kind).keys(8, 12, CPU)[0]
        torch.testing.assert_close(keys.places[0, :, 0] + 0.5, pixels / step)
        torch.testing.assert_close(keys.relation, torch.zeros_like(keys.relation), rtol=0, atol=1e-5)


def test_what_lies_at_infinity_is_masked_and_has_numbers() -> None:
    K = panorama.intrinsics(pi / 2, 65, 65)  # pixel 32, the middle, is at infinity for a camera at right angles
    R = torch.stack([panorama.rotation(0), panorama.rotation(pi / 2).round()])
    keys = PanoramaGeometry(K, R, (65, 65), neighbours="all").keys(1, 1, CPU)[0]
    assert not keys.places.isfinite().all() and not keys.mask.any() and keys.relation.isfinite().all()


def test_keys_are_computed_once_for_each_size() -> None:
    geometry = ring(8)
    assert geometry.keys(4, 4, CPU) is geometry.keys(4, 4, CPU)
    assert geometry.keys(4, 4, CPU) is not geometry.keys(8, 8, CPU)


def test_a_wall_is_seen_shifted() -> None:
    geometry, step = wall(views=2, height=32, width=48), 0.3
    keys = geometry.keys(4, 6, CPU)[0]
    shift = step * 24 / 2 / 8  # focal length 24, two metres away, 8 pixels to a token
    expected = (token_pixels(4, 6, 8) / 8 - 0.5 - torch.tensor([shift, 0.0])).float()
    torch.testing.assert_close(keys.places[0, :, 0], expected, rtol=0, atol=1e-4)
    seen = keys.mask[0, :, 0].bool()
    assert seen.sum() == 24 and not keys.relation[0, :, 0, 0][seen].any()


def test_what_has_no_depth_is_masked() -> None:
    whole = wall(views=2)
    depth = whole.depth.clone()
    depth[0, :16], depth[1, :, 24:] = 0, 0
    keys = DepthGeometry(depth, whole.c2w, whole.K).keys(4, 6, CPU)[0]
    mask = keys.mask[0, :, 0].view(4, 6)
    assert not mask[:2].any() and mask[2:, :3].all() and not mask[2:, 4:].any()
    assert (keys.relation[0, :, 0, 0].view(4, 6)[mask == 0] > 1e5).all()


@pytest.mark.parametrize("unknown", [torch.nan, torch.inf, -1.0])
def test_depth_that_is_no_length_is_unknown(unknown: float) -> None:
    whole = wall(views=2)
    depth, gaps = whole.depth.clone(), whole.depth.clone()
    depth[0, :16], gaps[0, :16] = unknown, 0
    found, expected = (DepthGeometry(each, whole.c2w, whole.K) for each in (depth, gaps))
    assert torch.equal(found.overlap, expected.overlap)
    for one, other in zip(found.keys(4, 6, CPU), expected.keys(4, 6, CPU), strict=True):
        assert all(map(torch.equal, one.tables, other.tables))
    assert torch.equal(depth_channels(depth, 4, 6), depth_channels(gaps, 4, 6))


def test_what_lies_behind_counts_only_as_released_weights_know_it() -> None:
    K, c2w = panorama.intrinsics(pi / 2, 32, 32), torch.eye(4).double().repeat(2, 1, 1)
    c2w[1, :3, :3] = panorama.rotation(pi)  # back to back
    for released in (True, False):
        geometry = DepthGeometry(torch.full((2, 32, 32), 2.0), c2w, K, released=released)
        assert (geometry.overlap[0, 1] > 0.9) == released and geometry.keys(4, 4, CPU)[0].mask.any() == released
    for encoding in ("reference", "capped"):
        model = tiny_model("depth")
        model.multiview.encoding = encoding
        at = Cameras(opencv_axes(c2w.float()), Projection(K.float().expand(2, 3, 3)), 32, 32)
        geometry = model.geometry(at, torch.full((2, 32, 32), 2.0), MVDiffusionConfig())
        assert geometry.released == (encoding == "reference")


def test_a_camera_that_turns_sees_the_same_wall_at_another_depth() -> None:
    K, c2w = panorama.intrinsics(pi / 2, 64, 64), torch.eye(4).double().repeat(2, 1, 1)
    c2w[1, :3, :3] = panorama.rotation(0.5)
    pixels = torch.cat([pixel_grid(64, 64), torch.ones(64, 64, 1)], -1).double()
    directions = torch.einsum("fij,jk,hwk->fhwi", c2w[:, :3, :3], K.double().inverse(), pixels)
    depth = torch.where(directions[..., 2] > 0, 2 / directions[..., 2], 0.0)  # of a wall in front of the first
    right, released = (DepthGeometry(depth, c2w, K, 0.3, how).keys(8, 8, CPU)[0] for how in (False, True))
    seen = right.mask.bool()
    assert seen.sum() > 20 and right.relation[..., 0][seen].max() < 0.1 < released.relation[..., 0][seen].mean()


def test_neighbours_by_overlap_or_else_by_order() -> None:
    overlap = torch.tensor([[1, 0.4, 0, 0.1], [0.4, 1, 0.3, 0], [0, 0.3, 1, 0], [0.1, 0, 0, 1]])
    assert overlap_neighbours(overlap, 0.3) == [[1], [0], [1, 3], [2]]
    assert overlap_neighbours(torch.ones(1, 1)) == [[]]


def test_scenes_of_a_batch_have_equally_many_views() -> None:
    both = Scenes([wall(3), wall(3, step=0.5)])
    assert both.n_view == 3 and len(both.keys(4, 6, CPU)) == 6
    with pytest.raises(ValueError, match="equally many"):
        Scenes([wall(3), wall(2)])
