"""Figures with intervals for all evaluations: shares, means, ratios, differences; and the viewing sides of an object.

Angles are in radians; azimuth 0 is the front and grows counter-clockwise seen from above (threedgen.geometry.cameras).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import pi
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

SIDES = ("front", "left", "back", "right")
"""Side k is visible within 45 degrees of azimuth 90 k; at azimuth 90 that is the object's left."""
SIDE_TOLERANCE = pi / 12
"""Within 15 degrees of the border of two sides, both are correct."""

Floats = NDArray[np.floating]
Values = Sequence[float | None]
"""A figure of each item; None where it is undefined. Undefined values are left out of means and intervals."""
Interval = tuple[float, float]
Estimate = dict[str, float | None]
"""A figure as JSON: ``mean`` and the 95 % interval ``low``, ``high``."""
Json = dict[str, Any]
"""An object of a JSON file."""


@dataclass(frozen=True)
class Share:
    """Number of hits out of a total, with Wilson's 95 % score interval (1927); value and interval are None for 0."""

    hits: int
    total: int

    @property
    def value(self) -> float | None:
        return self.hits / self.total if self.total else None

    @property
    def interval(self) -> Interval | None:
        if not self.total:
            return None
        low, high = stats.binomtest(self.hits, self.total).proportion_ci(0.95, "wilson")
        return float(low), float(high)

    def plain(self) -> dict[str, float | int | None]:
        """Convert to JSON."""
        low, high = self.interval or (None, None)
        return {"hits": self.hits, "total": self.total, "share": self.value, "low": low, "high": high}

    @classmethod
    def of(cls, tree: Json) -> Share:
        """Convert from JSON. Raises KeyError, TypeError or ValueError."""
        return cls(int(tree["hits"]), int(tree["total"]))


def share(answers: Sequence[bool | None]) -> Share:
    """Count the true answers; None (not applicable) is left out."""
    applicable = [answer for answer in answers if answer is not None]
    return Share(sum(map(bool, applicable)), len(applicable))


def majority(log_probability: Floats) -> int:
    """Return the class with the most votes of the views (V, K); ties go to the higher mean log-probability."""
    votes = np.bincount(log_probability.argmax(1), minlength=log_probability.shape[1])
    best = np.flatnonzero(votes == votes.max())
    return int(best[log_probability.mean(0)[best].argmax()])


def equal_error(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return the threshold with equal shares of missed positives and false alarms; 0.5 if either is empty."""
    if not positive or not negative:
        return 0.5
    above, below = np.sort(positive), np.sort(negative)
    thresholds = np.unique([*above, *below])
    missed = np.searchsorted(above, thresholds, side="right") / len(above)
    alarms = 1 - np.searchsorted(below, thresholds, side="right") / len(below)
    return float(thresholds[np.abs(missed - alarms).argmin()])


def defined(values: Values) -> NDArray[np.float64]:
    """Return the values that are not None."""
    return np.array([value for value in values if value is not None], np.float64)


def estimate(value: float | None, interval: Interval | None) -> Estimate:
    """Combine a figure and its interval."""
    low, high = interval or (None, None)
    return {"mean": value, "low": low, "high": high}


def mean(values: Values) -> float | None:
    """Return the mean of the defined values."""
    return float(np.mean(found)) if len(found := defined(values)) else None


def median(values: Values) -> float | None:
    """Return the median of the defined values."""
    return float(np.median(found)) if len(found := defined(values)) else None


def bootstrap(values: Values, rng: np.random.Generator | None = None, resamples: int = 10_000) -> Interval | None:
    """Return the 95 % percentile bootstrap interval of the mean (Efron 1979); None for fewer than two values.

    Args:
        rng: default: a fixed seed.
    """
    found = defined(values)
    if len(found) < 2:
        return None
    rng = rng or np.random.default_rng(0)
    result = stats.bootstrap((found,), np.mean, n_resamples=resamples, method="percentile", rng=rng)
    low, high = result.confidence_interval
    return float(low), float(high)


def mean_estimate(values: Values, rng: np.random.Generator | None = None, resamples: int = 10_000) -> Estimate:
    """Return the mean of the defined values with its `bootstrap` interval."""
    return estimate(mean(values), bootstrap(values, rng, resamples))


def paired_differences(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], names: Collection[str]
) -> list[dict[str, float | None]]:
    """Subtract the figures ``names`` item by item; None where either is undefined."""
    return [
        {name: None if None in (a[name], b[name]) else a[name] - b[name] for name in names}
        for a, b in zip(ours, theirs, strict=True)
    ]


def bootstrap_ratio(above: Values, below: Values) -> Interval | None:
    """Return the 95 % bootstrap interval of mean(above) / mean(below); None for fewer than two values.

    Sequences of equal length are resampled as pairs.
    """
    paired = len(above) == len(below)
    kept = [k for k in range(len(above)) if not paired or None not in (above[k], below[k])]
    over = defined([above[k] for k in kept])
    under = defined([below[k] for k in kept] if paired else below)
    if min(len(over), len(under)) < 2:
        return None

    def ratio(a: Floats, b: Floats, axis: int) -> Floats:
        return np.asarray(a.mean(axis) / b.mean(axis))

    rng = np.random.default_rng(0)
    result = stats.bootstrap(
        (over, under), ratio, n_resamples=10_000, method="percentile", paired=paired, rng=rng, vectorized=True
    )
    low, high = result.confidence_interval
    return float(low), float(high)


def jackknife_estimate(figure: Callable[[NDArray[np.intp]], float], count: int, groups: int = 20) -> Estimate:
    """Compute a figure of ``count`` items that is not a mean, such as FID, with its 95 % jackknife interval.

    The figure is also computed without each of ``groups`` groups of items; the deviations are taken as normal (Tukey
    1958). A bootstrap would bias FID, because it repeats items. No interval for fewer than two items.

    Args:
        figure: maps the indices of the items to the figure.
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
    """Return the index in `SIDES` of the side that a camera at ``azimuth`` faces."""
    return np.round(np.asarray(azimuth, float) / (pi / 2)).astype(np.int64) % 4


def sides_right(sides: Sequence[int] | NDArray[np.integer], azimuth: Floats) -> NDArray[np.bool_]:
    """Compare predicted sides (V,) with cameras at ``azimuth`` (V,): (V,), true within 45 degrees + tolerance."""
    difference = np.asarray(azimuth, float) - np.asarray(sides, float) * (pi / 2)
    return np.abs((difference + pi) % (2 * pi) - pi) <= pi / 4 + SIDE_TOLERANCE + 1e-9


def in_order(log_probability: Floats, azimuth: Floats) -> bool:
    """Return whether the most probable assignment of the four sides to the views is that of the cameras.

    All 24 assignments to four views at right angles are compared, so mirrored, rotated or swapped sides are wrong.

    Args:
        log_probability: (V, 4), of the sides of each view.
        azimuth: (V,), evenly spaced; V a multiple of 4. Each four views at right angles are checked.
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
