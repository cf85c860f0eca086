"""PSNR of the overlap of neighbouring views."""

from math import pi

import pytest
import torch
from torch import Tensor

from tests.support.tiny_mvdiffusion import wall
from threedgen.evaluation.metrics import overlap
from threedgen.evaluation.metrics.overlap import depth_overlap, given_view, overlap_ratio, panorama_overlap
from threedgen.geometry import panorama
from threedgen.geometry.warp import pixel_grid, unproject

FACES = torch.nn.functional.interpolate(torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(0)), 128)


def true_views(count: int = 8, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    K, R = panorama.intrinsics(pi / 2, size, size), panorama.ring(count)
    faces = torch.nn.functional.avg_pool2d(FACES, 9, 1, 4)
    return panorama.skybox_views(faces, K, R, size, size).permute(0, 2, 3, 1), K, R


def test_overlap_of_true_and_mixed_views() -> None:
    views, K, R = true_views()
    truth = panorama_overlap(views, K, R)
    assert len(truth) == 8 and min(p for p in truth if p is not None) > 30
    mixed = panorama_overlap(views.flip(0), K, R)
    assert max(p for p in mixed if p is not None) < 25
    ratio = overlap_ratio(mixed, truth)
    assert ratio is not None and ratio < 0.7
    assert overlap_ratio(truth, truth) == 1


def test_no_overlap_gives_none() -> None:
    views, K, R = true_views(3)
    assert panorama_overlap(views, K, R) == [None] * 3
    assert panorama_overlap(views[:1], K, R[:1]) == []
    assert overlap_ratio([None], [20.0]) is None


def test_depth_overlap_ignores_occluded_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = wall(views=3)
    pixels = pixel_grid(32, 48).flatten(0, 1)
    points = [unproject(pixels, walk.depth[n].flatten(), walk.K[n], walk.c2w[n]) for n in range(3)]
    views = torch.stack([0.5 + 0.4 * torch.sin(2 * p).view(32, 48, 3) for p in points]).float()
    found = depth_overlap(views, walk.depth, walk.K, walk.c2w)
    assert len(found) == 2 and min(p for p in found if p is not None) > 40
    spoilt, depth = views.clone(), walk.depth.clone()
    spoilt[1, :, :10], depth[1, :, :10] = 1 - spoilt[1, :, :10], 2.6  # something else stands before the second camera
    seen = depth_overlap(spoilt, depth, walk.K, walk.c2w)
    monkeypatch.setattr(overlap, "DEPTH_ERROR", 1.0)
    all_of_it = depth_overlap(spoilt, depth, walk.K, walk.c2w)
    assert seen[0] is not None and all_of_it[0] is not None and seen[0] > 30 > all_of_it[0]
    assert depth_overlap(views, walk.depth * 0, walk.K, walk.c2w) == [None, None]


def test_given_view_preserved_and_changed() -> None:
    views, K, R = true_views()
    same = given_view(views, views[0], K, R)
    assert same["given"] == 100 and same["beside_given"] > 30
    spoilt = views.clone()
    spoilt[0, :, :8] = 1 - spoilt[0, :, :8]  # on the side of the last view
    other = given_view(spoilt, views[0], K, R)
    assert other["given"] < 30 and other["beside_given"] == same["beside_given"]
    assert given_view(views, spoilt[0], K, R)["beside_given"] < same["beside_given"]
