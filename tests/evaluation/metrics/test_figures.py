"""Shares, intervals and sides of known cases."""

import numpy as np
import pytest
from scipy import stats

from threedgen.evaluation.metrics.figures import (
    Share,
    bootstrap,
    bootstrap_ratio,
    in_order,
    jackknife_estimate,
    majority,
    share,
    share_of_groups,
    side_of,
    sides_right,
)
from threedgen.evaluation.report import format_share

TURN = np.deg2rad([0.0, 90.0, 180.0, 270.0])


def test_share_has_the_score_interval() -> None:
    """Against published tables (Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29)."""
    table = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (hits, total), interval in table.items():
        assert Share(hits, total).interval == pytest.approx(interval, abs=6e-5)


def test_share_leaves_out_none() -> None:
    assert share([True, None, False, True]) == Share(2, 3)
    assert share([None]).value is share([None]).interval is None and format_share(share([None])) == "-"
    assert format_share(Share(195, 200)) == "97.5 % (195/200)"


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


def test_bootstrap_is_two_standard_errors() -> None:
    values = np.random.default_rng(1).normal(20, 2, 100).tolist()
    low, high = bootstrap(values, np.random.default_rng(2), 4000) or (0.0, 0.0)
    error = np.std(values) / 10
    assert (np.mean(values) - low) / error == pytest.approx(1.96, abs=0.25)
    assert (high - np.mean(values)) / error == pytest.approx(1.96, abs=0.25)
    assert bootstrap([1.0], np.random.default_rng(0)) is None
    assert bootstrap([2.0, None, 2.0], np.random.default_rng(0)) == (2.0, 2.0)


def test_side_of_azimuths() -> None:
    assert side_of(np.deg2rad([0, 44, 46, 90, 180, 271, 314, 316, 359, -90])).tolist() == [0, 0, 1, 1, 2, 3, 3, 0, 0, 3]


@pytest.mark.parametrize(
    ("seen", "start", "right"),
    [
        ([0, 1, 2, 3], 0, True),
        ([1, 2, 3, 0], 90, True),
        ([0, 3, 2, 1], 0, False),  # mirrored: left and right swapped
        ([2, 3, 0, 1], 0, False),  # turned round
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
    assert sides_right(seen, azimuth).all() == right


def test_side_tolerance() -> None:
    assert sides_right([0, 0, 0, 0], np.deg2rad([59, 61, -59, 360 - 61])).tolist() == [True, False, True, False]


def test_in_order_survives_one_wrong_view() -> None:
    probability = np.full((4, 4), 0.1)
    probability[np.arange(4), [0, 1, 2, 3]] = 0.7
    probability[2] = [0.4, 0.1, 0.35, 0.15]
    assert in_order(np.log(probability), TURN)
    assert not sides_right(probability.argmax(1), TURN).all()
    assert not in_order(np.log(np.roll(probability, 1, axis=1)), TURN)


def test_in_order_checks_both_rings_of_eight_views() -> None:
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
    grouped, single = share_of_groups(answers), share([answer for group in answers for answer in group])
    assert (grouped.hits, grouped.total, grouped.value) == (28, 40, 0.7)
    assert grouped.interval == (0.4, 1.0) and single.interval[1] - single.interval[0] < 0.3
    assert share_of_groups(answers[:7]).interval == Share(7, 7).interval
    assert Share.of(grouped.plain()).interval == grouped.interval and share_of_groups([]).interval is None
