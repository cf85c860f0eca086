import json

import numpy as np
import pytest

from threedgen.evaluation.metrics.figures import Proportion, proportion_of_groups
from threedgen.evaluation.metrics.fronts import ErrorRates, classify_ring, front_count, front_curve, smooth
from threedgen.evaluation.options import FRONT_THRESHOLD as AT


@pytest.mark.parametrize(
    ("front", "count"),
    [
        ([0.9, 0.6, 0, 0, 0, 0, 0, 0.6], 1),  # up to 45 degrees to each side, around the beginning
        ([0.9, 0.6, 0, 0.6, 0, 0, 0, 0], 2),  # 135 degrees
        ([0.9, 0, 0.6, 0, 0, 0, 0, 0], 1),  # 90 degrees
        ([0.9] * 8, 2),  # a body of revolution
        ([0.2] * 8, 0),
        ([1, 0, 0, 0] * 3, 3),
    ],
)
def test_front_count(front: list[float], count: int) -> None:
    for turn in range(len(front)):
        assert front_count(np.roll(front, turn), AT) == count
        assert front_count(np.roll(front[::-1], turn), AT) == count


def test_smoothing_removes_single_wrong_views_by_an_angle_for_any_view_count() -> None:
    """One wrong view of a correct object, and a real front behind."""
    good = np.array([0.95, 0.6, 0, 0, 0, 0, 0, 0.6])
    for turn in range(8):
        slip, janus = np.roll(good, turn), np.roll(np.maximum(good, np.roll(good, 4)), turn)
        slip[(turn + 4) % 8] = 0.75
        assert front_count(slip, AT) == 2 and front_count(smooth(slip), AT) == 1
        assert front_count(smooth(janus), AT) == 2 and front_count(smooth(np.full(8, 0.9)), AT) == 2
    eight = smooth(np.eye(8)[0])
    assert eight[[7, 0, 1]] == pytest.approx([0.25, 0.5, 0.25]) and eight.sum() == pytest.approx(1)
    twelve = smooth(np.eye(12)[0])  # every 30 degrees: 1, 2/3, 1/3 and nothing at 90
    assert twelve[:4] == pytest.approx([1 / 3, 2 / 9, 1 / 9, 0])


RING = np.deg2rad(np.arange(8) * 45.0)


def sure(seen: list[int], p: float = 0.94) -> np.ndarray:
    sides = np.full((len(seen), 4), (1 - p) / 3)
    sides[np.arange(len(seen)), seen] = p
    return sides


def test_ring_of_one_of_two_and_of_no_front() -> None:
    good = classify_ring(sure([0, 0, 1, 2, 2, 2, 3, 0]), RING, AT)
    assert (good.fronts, good.several) == (1, False) and all(good.correct)
    assert good.shown == (True, True, False, False, False, False, False, True)
    janus = classify_ring(sure([0, 0, 1, 0, 0, 0, 3, 0]), RING, AT)
    assert (janus.fronts, janus.several) == (2, True)
    assert janus.correct == (True, True, True, False, False, False, True, True)
    # 30 % front is no front beside 40 % back, even at a low threshold
    sides = np.tile([0.3, 0.15, 0.4, 0.15], (8, 1))
    assert not front_curve(sides).any() and classify_ring(sides, RING, threshold=0.2).fronts == 0


def test_certainty_decides_whether_an_object_has_a_front() -> None:
    """Side probabilities that sum to 0.6 count as those of an object with a front, 0.4 as those of one without."""
    sides = sure([0, 0, 1, 2, 2, 2, 3, 0])
    whole, unsure, without = (classify_ring(share * sides, RING, AT) for share in (1.0, 0.6, 0.4))
    assert (whole.fronts, unsure.fronts, without.fronts) == (1, 1, 0) and without.several is None
    assert unsure.certainty == pytest.approx(0.6 * whole.certainty) and without.certainty == 0


def test_corrected_rate_and_interval_of_a_good_and_a_useless_meter() -> None:
    rates = ErrorRates(Proportion(10, 200), Proportion(180, 200))  # 5 % and 90 %
    assert rates.corrected(Proportion(40, 100)) == pytest.approx((0.4 - 0.05) / 0.85)
    assert rates.corrected(Proportion(1, 100)) == 0 and rates.corrected(Proportion(99, 100)) == 1
    low, high = rates.interval(Proportion(40, 100)) or (1.0, 0.0)
    assert low < 0.41 < high and high - low > 0.19
    wide = rates.interval(proportion_of_groups([[True] * 5] * 8 + [[False] * 5] * 12)) or (1.0, 0.0)
    assert wide[1] - wide[0] > 1.7 * (high - low)  # 20 prompts with five equal answers each
    assert rates.corrected(Proportion(0, 0)) is None and rates.interval(Proportion(0, 0)) is None
    assert ErrorRates.from_plain(json.loads(json.dumps(rates.plain()))) == rates
    for numbers in ((50, 100, 55, 100), (0, 0, 0, 0)):
        useless = ErrorRates(Proportion(*numbers[:2]), Proportion(*numbers[2:]))
        assert useless.corrected(Proportion(40, 100)) is None and useless.interval(Proportion(40, 100)) is None


@pytest.mark.parametrize("truth", [0.05, 0.7])
def test_interval_covers_the_truth_in_95_percent(truth: float) -> None:
    """500 benchmarks of 90 assets, with a meter of 3 % false alarms and 92 % recall measured on 150 objects each."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(500):
        alarms, hits = rng.binomial(150, 0.03), rng.binomial(150, 0.92)
        janus = rng.binomial(90, truth)
        raw = rng.binomial(janus, 0.92) + rng.binomial(90 - janus, 0.03)
        rates = ErrorRates(Proportion(int(alarms), 150), Proportion(int(hits), 150))
        low, high = rates.interval(Proportion(int(raw), 90)) or (1, 0)
        held += low <= truth <= high
    assert 0.93 <= held / 500 <= 0.995
