"""Shares, means and ratios with 95 % intervals for all evaluations, and checks of the viewing sides of an object.

Angles are in radians. A camera at azimuth 0 sees the front of the object. The azimuth increases counter-clockwise, seen
from above (`threedgen.geometry.cameras`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

SIDES = ("front", "left", "back", "right")
"""A camera within 45 degrees of azimuth k * 90 degrees sees side k. Left is the object's left."""
SIDE_TOLERANCE = pi / 12
"""If a camera is within this angle (15 degrees) of the border between two sides, both sides are correct."""

Floats = NDArray[np.floating]
Values = Sequence[float | None]
"""Values of a metric, one per item; None where undefined. Undefined values are left out of means and intervals."""
Interval = tuple[float, float]
Estimate = dict[str, float | None]
"""Value of a metric under the key ``mean``, with the limits of its 95 % interval under ``low`` and ``high``."""
Json = dict[str, Any]
Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Proportion:
    """Fraction of answers that are True (the others are False), with a 95 % interval.

    The property ``value`` is ``hits / total``, and ``interval`` is (low, high). Both are None if ``total`` is 0.

    Attributes:
        hits: number of answers that are True.
        total: number of answers.
        limits: interval that the caller has computed, such as a bootstrap interval for answers that depend on each
            other; None: ``interval`` is Wilson's score interval (1927), which assumes independent answers.
    """

    hits: int
    total: int
    limits: Interval | None = field(default=None, compare=False)

    @property
    def value(self) -> float | None:
        return self.hits / self.total if self.total else None

    @property
    def interval(self) -> Interval | None:
        if not self.total or self.limits:
            return self.limits
        low, high = stats.binomtest(self.hits, self.total).proportion_ci(0.95, "wilson")
        return float(low), float(high)

    @property
    def sample_size(self) -> float:
        """Effective number of independent answers, at most `total`, the number of answers; 0 if there are none.

        Answers that depend on each other tell less than as many independent ones, so their interval is longer. If the
        attribute `limits` has such an interval, the result is the number of independent answers for which Wilson's
        interval would be equally long. If `limits` is None, the answers count as independent, and the result is
        `total`.
        """
        if not self.total or self.interval is None:
            return 0.0
        p, h2 = self.hits / self.total, (self.interval[1] - self.interval[0]) ** 2 / 4
        b, c = 2 * h2 * Z**2 - Z**2 * p * (1 - p), Z**4 * (h2 - 0.25)
        return min(float(self.total), (-b + sqrt(b * b - 4 * h2 * c)) / (2 * h2)) if h2 else float(self.total)

    def plain(self) -> dict[str, float | int | None]:
        low, high = self.interval or (None, None)
        return {"hits": self.hits, "total": self.total, "share": self.value, "low": low, "high": high}

    @classmethod
    def of(cls, tree: Json) -> "Proportion":
        limits = None if tree.get("low") is None else (float(tree["low"]), float(tree["high"]))
        return cls(int(tree["hits"]), int(tree["total"]), limits)


def proportion(answers: Sequence[bool | None]) -> Proportion:
    """Return the proportion of answers that are True. Answers that are None are not counted."""
    applicable = [answer for answer in answers if answer is not None]
    return Proportion(sum(map(bool, applicable)), len(applicable))


def proportion_of_groups(groups: Iterable[Sequence[bool | None]]) -> Proportion:
    """Return the proportion of True answers over groups of dependent answers, such as one answer per view of an object.

    All answers of all groups are counted, except those that are None. The 95 % interval depends on the answers:

    - Every group has one answer: Wilson's interval.
    - All answers are equal: Wilson's interval for as many answers as there are groups (a bootstrap has no spread).
    - Else: bootstrap over groups; (0, 1) for a single group.
    """
    counted = [found for found in map(proportion, groups) if found.total]
    hits, total = sum(found.hits for found in counted), sum(found.total for found in counted)
    if len(counted) == total:
        return Proportion(hits, total)
    if 0 < hits < total:
        limits = bootstrap_ratio([found.hits for found in counted], [found.total for found in counted])
        return Proportion(hits, total, limits or (0.0, 1.0))
    return Proportion(hits, total, Proportion(len(counted) if hits else 0, len(counted)).interval)


def majority(log_probability: Floats) -> int:
    """Classify an object by a vote of its views: return the index of the class with the most votes.

    ``log_probability`` is (V, K) for V views and K classes. Each view votes for its most probable class. Between
    classes with equal votes, the one with the highest mean log-probability is returned.
    """
    votes = np.bincount(log_probability.argmax(1), minlength=log_probability.shape[1])
    best = np.flatnonzero(votes == votes.max())
    return int(best[log_probability.mean(0)[best].argmax()])


def equal_error(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the threshold at which miss rate and false alarm rate differ least; 0.5 if a list of scores is empty.

    ``positive`` has the scores of items that should be above the threshold, ``negative`` of items that should not.
    """
    if not positive or not negative:
        return 0.5
    above, below = np.sort(positive), np.sort(negative)
    thresholds = np.unique([*above, *below])
    missed = np.searchsorted(above, thresholds, side="right") / len(above)
    alarms = 1 - np.searchsorted(below, thresholds, side="right") / len(below)
    return float(thresholds[np.abs(missed - alarms).argmin()])


def defined(values: Values) -> NDArray[np.float64]:
    return np.array([value for value in values if value is not None], np.float64)


def estimate(value: float | None, interval: Interval | None) -> Estimate:
    low, high = interval or (None, None)
    return {"mean": value, "low": low, "high": high}


def mean(values: Values) -> float | None:
    return float(np.mean(found)) if len(found := defined(values)) else None


def median(values: Values) -> float | None:
    return float(np.median(found)) if len(found := defined(values)) else None


def bootstrap(
    values: Values,
    rng: np.random.Generator | None = None,
    resamples: int = 10_000,
    statistic: Callable[..., object] = np.mean,
) -> Interval | None:
    """Return the 95 % percentile bootstrap interval (low, high) of the mean or another statistic (Efron 1979).

    Values that are None are left out. With fewer than two remaining values the result is None. If ``rng`` is None, a
    generator with seed 0 is used. ``statistic`` is a numpy function with the argument ``axis``.
    """
    found = defined(values)
    if len(found) < 2:
        return None
    return _percentiles((found,), statistic, n_resamples=resamples, rng=rng or np.random.default_rng(0))


def mean_estimate(values: Values, rng: np.random.Generator | None = None, resamples: int = 10_000) -> Estimate:
    return estimate(mean(values), bootstrap(values, rng, resamples))


def median_estimate(values: Values) -> Estimate:
    return estimate(median(values), bootstrap(values, statistic=np.median))


def paired_differences(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], names: Collection[str]
) -> list[dict[str, float | None]]:
    """Return one dict per item: name of a metric -> its value in ``ours`` minus its value in ``theirs``.

    ``ours`` and ``theirs`` have one dict of metrics per item, and ``names`` are the metrics to subtract. A difference
    is None if one of its two values is None.
    """
    return [
        {name: None if None in (a[name], b[name]) else a[name] - b[name] for name in names}
        for a, b in zip(ours, theirs, strict=True)
    ]


def bootstrap_ratio(above: Values, below: Values) -> Interval | None:
    """Return the 95 % bootstrap interval (low, high) of mean(above) / mean(below).

    Lists of the same length are resampled in pairs, and pairs with a None are left out. Lists of different lengths are
    resampled independently, without values that are None. The result is None if fewer than two values of a list remain.
    """
    paired = len(above) == len(below)
    kept = [k for k in range(len(above)) if not paired or None not in (above[k], below[k])]
    over = defined([above[k] for k in kept])
    under = defined([below[k] for k in kept] if paired else below)
    if min(len(over), len(under)) < 2:
        return None

    def ratio(a: Floats, b: Floats, axis: int) -> Floats:
        return np.asarray(a.mean(axis) / b.mean(axis))

    return _percentiles((over, under), ratio, n_resamples=10_000, rng=np.random.default_rng(0), paired=paired)


def _percentiles(samples: tuple[Floats, ...], statistic: Callable[..., object], **options: Any) -> Interval:
    result = stats.bootstrap(samples, statistic, method="percentile", **options)
    low, high = result.confidence_interval
    return float(low), float(high)


def jackknife_estimate(figure: Callable[[NDArray[np.intp]], float], count: int, groups: int = 20) -> Estimate:
    """Compute a metric of a set of items, such as FID, and its 95 % jackknife interval (Tukey 1958).

    The items are split into groups. The metric is computed again without each group, and Student's t distribution gives
    the interval. A bootstrap would bias FID, because it repeats items. The result is a dict with the metric under
    "mean" and the limits of the interval under "low" and "high"; the limits are None for one item.

    Args:
        figure: function from the indices (N,) of the included items to the metric.
        count: number of items.
        groups: maximum number of groups.
    """
    everything = np.arange(count)
    value, parts = figure(everything), np.array_split(everything, min(groups, count))
    if len(parts) < 2:
        return estimate(value, None)
    without = np.array([figure(np.setdiff1d(everything, part)) for part in parts])
    factor = (len(parts) - 1) / len(parts)
    error = np.sqrt(factor * np.square(without - without.mean()).sum()) * stats.t.ppf(0.975, len(parts) - 1)
    return estimate(value, (float(value - error), float(value + error)))


def side_of(azimuth: Floats | float) -> NDArray[np.int64]:
    """Return the index in `SIDES` of the side that a camera sees.

    `SIDES` are front (at azimuth 0), left, back and right, 90 degrees apart. ``azimuth`` is in radians, of the shape
    (V,) or (). The result has the same shape.
    """
    return np.round(np.asarray(azimuth, float) / (pi / 2)).astype(np.int64) % 4


def correct_sides(sides: Sequence[int] | NDArray[np.integer], azimuth: Floats) -> NDArray[np.bool_]:
    """Return a bool mask (V,) of the views whose predicted side is correct.

    ``sides`` (V,) are predicted indices in `SIDES`: 0 front, 1 left, 2 back, 3 right. ``azimuth`` (V,) are azimuths of
    the cameras in radians. Side k is correct for cameras within 60 degrees of the azimuth k * 90 degrees.
    """
    difference = np.asarray(azimuth, float) - np.asarray(sides, float) * (pi / 2)
    return np.abs((difference + pi) % (2 * pi) - pi) <= pi / 4 + SIDE_TOLERANCE + 1e-9


def in_order(log_probability: Floats, azimuth: Floats) -> bool:
    """Return whether the views of an object show its four sides in the order of the cameras.

    The views are divided into groups of four, 90 degrees apart. For each group, the four sides are assigned to the four
    views such that the sum of log-probabilities is greatest. In every group, this assignment must be the true one, the
    sides that the cameras see. Mirrored, rotated or swapped sides are wrong.

    A camera near the border between two sides sees both. So if the cameras of a group are within 15 degrees
    (`SIDE_TOLERANCE`) of such borders, a second assignment is right too: each of the four views has the side beyond the
    border that is near its camera.

    Args:
        log_probability: log-probabilities (V, 4) of front, left, back and right in each view.
        azimuth: evenly spaced azimuths (V,) of the cameras, radians; 0 sees the front. V is a multiple of 4.
    """
    if len(azimuth) % 4:
        raise ValueError(f"number of views is not a multiple of 4: {len(azimuth)}")
    assignments = np.array(list(permutations(range(4))))
    for start in range(len(azimuth) // 4):
        ring = slice(start, None, len(azimuth) // 4)
        offsets = (-SIDE_TOLERANCE, 0.0, SIDE_TOLERANCE)
        right = {tuple(side_of(np.asarray(azimuth)[ring] + offset).tolist()) for offset in offsets}
        likeliest = log_probability[ring][np.arange(4), assignments].sum(1).argmax()
        if tuple(assignments[likeliest].tolist()) not in right:
            return False
    return True
