from math import pi
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_mvdiffusion import awaken, ring, tiny_model, wall
from threedgen.geometry import panorama
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.warp import pixel_grid
from threedgen.guidance.priors.mvdiffusion import caa
from threedgen.guidance.priors.mvdiffusion.caa import DepthBlock, PanoramaBlock
from threedgen.guidance.priors.mvdiffusion.geometry import (
    DepthGeometry,
    PanoramaGeometry,
    overlap_neighbours,
    token_pixels,
)
from threedgen.guidance.priors.mvdiffusion.inputs import depth_channels

CPU = torch.device("cpu")


def features(views: int = 8, width: int = 32, size: tuple[int, int] = (8, 8)) -> Tensor:
    return torch.randn(views, width, *size, generator=torch.Generator().manual_seed(0))


def output_and_gradients(block: PanoramaBlock | DepthBlock, x: Tensor, keys, n_view: int) -> tuple[Tensor, ...]:
    out = block(x, keys, n_view)
    return out, *torch.autograd.grad(out.square().mean(), [x, *block.parameters()])


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features(3, 64, (4, 6)).requires_grad_()
    keys = wall().keys(4, 6, CPU)
    block = awaken(DepthBlock(64))
    results = []
    for chunk, kept in ((caa.CHUNK["cpu"], caa.MAX_KEPT), (caa.CHUNK["cpu"], 0), (1, 0), (64 * 9, caa.MAX_KEPT)):
        monkeypatch.setitem(caa.CHUNK, "cpu", chunk)
        monkeypatch.setattr(caa, "MAX_KEPT", kept)
        results.append(output_and_gradients(block, x, keys, 3))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [PanoramaBlock, DepthBlock])
def test_views_together_give_the_same_as_one_by_one(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    panorama = kind is PanoramaBlock
    x = (features() if panorama else features(3, 64, (4, 6))).requires_grad_()
    keys = (ring().keys(8, 8, CPU) if panorama else wall(step=1.6).keys(4, 6, CPU)) * 2
    x = torch.cat([x, 2 * x])
    block, groups = awaken(kind(x.shape[1])), caa.view_groups
    alone = output_and_gradients(block, x, keys, len(x) // 2)
    monkeypatch.setattr(caa, "view_groups", lambda keys, device: groups(keys, torch.device("cuda")))
    assert len(caa.view_groups(keys, CPU)) == (1 if panorama else 2)  # the middle one of three has more neighbours
    torch.testing.assert_close(output_and_gradients(block, x, keys, len(x) // 2), alone, rtol=1e-4, atol=1e-6)


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


def test_missing_and_invalid_depth_is_masked() -> None:
    whole = wall(views=2)
    depth = whole.depth.clone()
    depth[0, :16], depth[1, :, 24:] = 0, 0
    missing = DepthGeometry(depth, whole.c2w, whole.K)
    expected = missing.keys(4, 6, CPU)
    mask = expected[0].mask[0, :, 0].view(4, 6)
    assert not mask[:2].any() and mask[2:, :3].all() and not mask[2:, 4:].any()
    assert (expected[0].relation[0, :, 0, 0].view(4, 6)[mask == 0] > 1e5).all()
    for unknown in (torch.nan, torch.inf, -1.0):
        invalid = depth.clone()
        invalid[depth == 0] = unknown
        found = DepthGeometry(invalid, whole.c2w, whole.K)
        assert torch.equal(found.overlap, missing.overlap)
        for one, other in zip(found.keys(4, 6, CPU), expected, strict=True):
            assert all(map(torch.equal, one.tables, other.tables))
        assert torch.equal(depth_channels(invalid, 4, 6), depth_channels(depth, 4, 6))


def test_points_behind_camera_count_only_for_released_weights() -> None:
    K, c2w = panorama.intrinsics(pi / 2, 32, 32), torch.eye(4).double().repeat(2, 1, 1)
    c2w[1, :3, :3] = panorama.rotation(pi)  # back to back
    for released in (True, False):
        geometry = DepthGeometry(torch.full((2, 32, 32), 2.0), c2w, K, as_released=released)
        assert (geometry.overlap[0, 1] > 0.9) == released and geometry.keys(4, 4, CPU)[0].mask.any() == released
    for encoding in ("reference", "capped"):
        model = tiny_model("depth")
        model.multiview.encoding = encoding
        at = Cameras(opencv_axes(c2w.float()), Projection(K.float().expand(2, 3, 3)), 32, 32)
        geometry = model.geometry(at, torch.full((2, 32, 32), 2.0))
        assert geometry.as_released == (encoding == "reference")


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
    assert overlap_neighbours(torch.ones(1, 1), 0.3) == [[]]
