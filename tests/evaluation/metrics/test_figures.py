import json
from math import pi
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.support.parity_files import parity_files
from tests.support.tiny_mvdiffusion import wall
from threedgen.evaluation.metrics import overlap
from threedgen.evaluation.metrics.distributions import (
    colour_disagreement,
    fid,
    foreground_means,
    inception_score,
    kid,
    mottle,
)
from threedgen.evaluation.metrics.figures import (
    Proportion,
    bootstrap_ratio,
    correct_sides,
    in_order,
    jackknife_estimate,
    majority,
    proportion,
    proportion_of_groups,
    side_of,
)
from threedgen.evaluation.metrics.overlap import depth_overlap, given_view, overlap_ratio, panorama_overlap
from threedgen.geometry import panorama
from threedgen.geometry.warp import pixel_grid, unproject

TURN = np.deg2rad([0.0, 90.0, 180.0, 270.0])


def test_share_has_the_score_interval_and_leaves_out_none() -> None:
    """Against published tables (Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29)."""
    table = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (hits, total), interval in table.items():
        assert Proportion(hits, total).interval == pytest.approx(interval, abs=6e-5)
    assert proportion([True, None, False, True]) == Proportion(2, 3)
    none = proportion([None])
    assert none.value is none.interval is None


def test_intervals_of_ratios_and_jackknife() -> None:
    rng = np.random.default_rng(1)
    below = rng.normal(20, 2, 200)
    above = 0.5 * below + rng.normal(0, 0.1, 200)
    low, high = bootstrap_ratio(above.tolist(), below.tolist()) or (0, 0)
    assert 0.49 < low < 0.5 < high < 0.51
    wide = bootstrap_ratio(above.tolist()[::-1], below.tolist()[:-1]) or (0, 0)  # of other scenes
    assert wide[0] < low and wide[1] > high and bootstrap_ratio([1.0], [2.0]) is None
    assert bootstrap_ratio([1.0, None, 3.0], [2.0, 2.0, 6.0]) == pytest.approx((0.5, 0.5))
    found = jackknife_estimate(lambda kept: float(below[kept].mean()), 200, 200)
    half = stats.t.ppf(0.975, 199) * stats.sem(below)
    assert found == pytest.approx({"mean": below.mean(), "low": below.mean() - half, "high": below.mean() + half})
    assert jackknife_estimate(lambda kept: 1.0, 1) == {"mean": 1.0, "low": None, "high": None}


def test_majority() -> None:
    sure, torn = [0.98, 0.01, 0.01], [0.3, 0.4, 0.3]
    assert majority(np.log([sure, torn, torn])) == 1  # the mean would say 0
    assert majority(np.log([sure, torn])) == 0  # of equally many votes the surer one


def test_side_of_azimuths_and_its_tolerance() -> None:
    assert side_of(np.deg2rad([0, 44, 46, 90, 180, 271, 314, 316, 359, -90])).tolist() == [0, 0, 1, 1, 2, 3, 3, 0, 0, 3]
    assert correct_sides([0, 0, 0, 0], np.deg2rad([59, 61, -59, 360 - 61])).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("seen", "start", "right"),
    [
        ([0, 0, 0, 0], 0, False),  # a face on every side
        ([0, 1, 3, 2], 0, False),  # two swapped
        ([0, 1, 2, 3], 44, True),  # near the border either neighbour is right
        ([1, 2, 3, 0], 44, True),
        ([1, 2, 3, 0], 20, False),
    ],
)
def test_in_order_and_single_sides(seen: list[int], start: float, right: bool) -> None:
    """Confident sides ``seen``; the order of equal sides is undefined."""
    azimuth = TURN + np.deg2rad(start)
    probability = np.full((4, 4), 0.02)
    probability[np.arange(4), seen] = 0.94
    if len(set(seen)) == 4:
        assert in_order(np.log(probability), azimuth) is right
    assert correct_sides(seen, azimuth).all() == right


def test_in_order_survives_one_wrong_view_and_checks_both_rings_of_eight() -> None:
    probability = np.full((4, 4), 0.1)
    probability[np.arange(4), [0, 1, 2, 3]] = 0.7
    probability[2] = [0.4, 0.1, 0.35, 0.15]
    assert in_order(np.log(probability), TURN)
    assert not correct_sides(probability.argmax(1), TURN).all()
    assert not in_order(np.log(np.roll(probability, 1, axis=1)), TURN)
    azimuth = np.deg2rad(np.arange(8) * 45.0 + 10)
    probability = np.full((8, 4), 0.02)
    probability[np.arange(8), side_of(azimuth)] = 0.94
    assert in_order(np.log(probability), azimuth)
    probability[[1, 5]] = probability[[5, 1]]  # two opposite views of one ring swapped
    assert not in_order(np.log(probability), azimuth)
    with pytest.raises(ValueError, match="6"):
        in_order(np.log(probability[:6]), azimuth[:6])


def test_interval_of_views_is_over_their_objects() -> None:
    """Ten objects with four equal answers are no more evidence than ten answers."""
    answers = [[True] * 4] * 7 + [[False] * 4] * 3
    grouped, single = proportion_of_groups(answers), proportion([answer for group in answers for answer in group])
    assert (grouped.hits, grouped.total, grouped.value) == (28, 40, 0.7)
    assert grouped.interval == (0.4, 1.0) and single.interval[1] - single.interval[0] < 0.3
    assert proportion_of_groups(answers[:7]).interval == Proportion(7, 7).interval
    assert proportion_of_groups([[True], [], [None], [False]]).interval == Proportion(1, 2).interval
    assert single.sample_size == pytest.approx(40) and 5 < grouped.sample_size < 15
    assert proportion_of_groups(answers[:7]).sample_size == pytest.approx(7) and Proportion(0, 0).sample_size == 0
    assert Proportion.of(grouped.plain()).interval == grouped.interval and proportion_of_groups([]).interval is None


MASK = np.zeros((2, 64, 64), bool)
MASK[:, 16:48, 16:48] = True


def painted(*colours: tuple[float, float, float]) -> np.ndarray:
    views = np.full((2, 64, 64, 3), 0.5)
    for k, colour in enumerate(colours):
        views[:, 16 + k * 32 // len(colours) : 48, 16:48] = colour
    return views


def test_colour_disagreement_of_foreground_means() -> None:
    red, none = foreground_means(painted((1, 0, 0)), np.stack([MASK[0], np.zeros((64, 64), bool)]))
    assert red == pytest.approx([53.2, 80.1, 67.2], abs=0.1)  # sRGB red in CIE Lab
    assert none is None
    a, b = np.zeros(3), np.array([3.0, 4.0, 0.0])
    assert colour_disagreement([a, a, b], 99) == pytest.approx((0 + 5 + 5) / 3)
    assert colour_disagreement([a, a, None], 30) == pytest.approx((0 + 30 + 30) / 3)


def test_mottle_grows_with_spots_of_colour() -> None:
    for colours in ([(1, 0, 0)], [(1, 0, 0), (0, 0, 1)], [(1, 0, 0), (0, 0, 1), (0, 1, 0), (1, 1, 0)]):
        assert mottle(painted(*colours), MASK) == pytest.approx(0, abs=1e-3)
    flat, rng = painted((0.6, 0.3, 0.2)), np.random.default_rng(0)
    little, much = (np.clip(flat + rng.normal(0, s, flat.shape), 0, 1) for s in (0.05, 0.2))
    assert 0 < mottle(little, MASK) < mottle(much, MASK)  # type: ignore[operator]
    assert mottle(painted((1, 0, 0)), np.zeros_like(MASK)) is None


FILES = parity_files("metric_distribution")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_distribution_parity(file: Path) -> None:
    found = np.load(file, allow_pickle=False)
    x, y = found["in:features_x"], found["in:features_y"]
    assert fid(x, y) == pytest.approx(float(found["out:fid"]), rel=1e-6)
    count = min(len(x), len(y))
    assert kid(x[:count], y[:count], 1, count) == pytest.approx(float(found["out:kid"]), rel=1e-6)
    splits = int(json.loads(str(found["meta_json"]))["is_splits"])
    assert inception_score(found["in:logits"], splits) == pytest.approx(float(found["out:is_mean"]), rel=1e-6)


def test_kid_of_subsets_is_repeatable_and_leaves_the_global_generator() -> None:
    x, y = (np.random.default_rng(seed).normal(size=(count, 6)) for seed, count in enumerate((400, 300)))
    assert kid(x, y + 1, subsets=20, size=100) == pytest.approx(kid(x[:300], y + 1, 1, 300), rel=0.15)
    state = torch.get_rng_state()
    assert kid(x, y, 2, 100) == kid(x, y, 2, 100)
    assert torch.equal(state, torch.get_rng_state())


FACES = torch.nn.functional.interpolate(torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(0)), 128)


def true_views(count: int = 8, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    K, R = panorama.intrinsics(pi / 2, size, size), panorama.ring(count)
    faces = torch.nn.functional.avg_pool2d(FACES, 9, 1, 4)
    return panorama.skybox_views(faces, K, R, size, size).permute(0, 2, 3, 1), K, R


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


def test_given_view_preserved_and_changed_and_no_overlap_gives_none() -> None:
    views, K, R = true_views()
    same = given_view(views, views[0], K, R)
    assert same["given"] == 100 and same["beside_given"] > 30
    spoilt = views.clone()
    spoilt[0, :, :8] = 1 - spoilt[0, :, :8]  # on the side of the last view
    other = given_view(spoilt, views[0], K, R)
    assert other["given"] < 30 and other["beside_given"] == same["beside_given"]
    assert given_view(views, spoilt[0], K, R)["beside_given"] < same["beside_given"]
    views, K, R = true_views(3)
    assert panorama_overlap(views, K, R) == [None] * 3
    assert panorama_overlap(views[:1], K, R[:1]) == []
    assert overlap_ratio([None], [20.0]) is None
