"""Computes what all evaluations share: shares, means and other figures with their intervals, viewing sides in order.

Angles are in radians, azimuth 0 is the front and grows counter-clockwise seen from above (threedgen.geometry.cameras).
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
"""Side k is what a camera sees within 45 degrees of azimuth 90 k; at azimuth 90 that is the object's left."""
SLACK = pi / 12
"""So close (15 degrees) to the border of two sides, either of them is a right answer."""

Floats = NDArray[np.floating]
Interval = tuple[float, float]
Estimate = dict[str, float | None]
"""A figure as plain data: its ``mean`` and the 95 % interval from ``low`` to ``high``."""


@dataclass(frozen=True)
class Share:
    """``hits`` of ``total``, with the 95 % score interval of the share (Wilson 1927); both None for a total of 0."""

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
        """For JSON."""
        low, high = self.interval or (None, None)
        return {"hits": self.hits, "total": self.total, "share": self.value, "low": low, "high": high}

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Share:
        """From JSON. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(int(tree["hits"]), int(tree["total"]))


def share(answers: Sequence[bool | None]) -> Share:
    """Counts the True ones; None (not applicable) does not count."""
    asked = [answer for answer in answers if answer is not None]
    return Share(sum(map(bool, asked)), len(asked))


def majority(log_probability: Floats) -> int:
    """Finds the class that most views (V, K) vote for; of equally many votes the more probable one."""
    votes = np.bincount(log_probability.argmax(1), minlength=log_probability.shape[1])
    best = np.flatnonzero(votes == votes.max())
    return int(best[log_probability.mean(0)[best].argmax()])


def estimate(value: float | None, interval: Interval | None) -> Estimate:
    """Joins a figure and its interval."""
    low, high = interval or (None, None)
    return {"mean": value, "low": low, "high": high}


def mean(values: Sequence[float | None]) -> float | None:
    """Averages those that there are."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def median(values: Sequence[float | None]) -> float | None:
    """Takes the median of those that there are."""
    there = [value for value in values if value is not None]
    return float(np.median(there)) if there else None


def bootstrap(
    values: Sequence[float | None], rng: np.random.Generator | None = None, resamples: int = 10_000
) -> Interval | None:
    """Finds the 95 % interval of the mean of those that there are: percentiles of means of values drawn with
    replacement (Efron 1979). None below two values. Without ``rng`` always the same for the same values."""
    there = np.array([value for value in values if value is not None], np.float64)
    if len(there) < 2:
        return None
    rng = rng or np.random.default_rng(0)
    found = stats.bootstrap((there,), np.mean, n_resamples=resamples, method="percentile", rng=rng)
    low, high = found.confidence_interval
    return float(low), float(high)


def mean_estimate(
    values: Sequence[float | None], rng: np.random.Generator | None = None, resamples: int = 10_000
) -> Estimate:
    """Averages those that there are, with the interval that ``bootstrap`` finds."""
    return estimate(mean(values), bootstrap(values, rng, resamples))


def paired_differences(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], names: Collection[str]
) -> list[dict[str, float | None]]:
    """Subtracts the figures ``names`` scene by scene; None where either has none."""
    return [
        {name: None if None in (a[name], b[name]) else a[name] - b[name] for name in names}
        for a, b in zip(ours, theirs, strict=True)
    ]


def bootstrap_ratio(above: Sequence[float | None], below: Sequence[float | None]) -> Interval | None:
    """Finds the 95 % interval of the mean of those ``above`` over that of those ``below``, as ``bootstrap`` does; two
    sequences of one length are taken for pairs. None below two values."""
    paired = len(above) == len(below)
    kept = [k for k in range(len(above)) if not paired or None not in (above[k], below[k])]
    over = np.array([above[k] for k in kept if above[k] is not None], np.float64)
    under = np.array([below[k] for k in kept] if paired else [v for v in below if v is not None], np.float64)
    if min(len(over), len(under)) < 2:
        return None

    def ratio(a: Floats, b: Floats, axis: int) -> Floats:
        return np.asarray(a.mean(axis) / b.mean(axis))

    how: Any = {"n_resamples": 10_000, "method": "percentile", "paired": paired, "rng": np.random.default_rng(0)}
    low, high = stats.bootstrap((over, under), ratio, vectorized=True, **how).confidence_interval
    return float(low), float(high)


def jackknife_estimate(figure: Callable[[NDArray[np.intp]], float], count: int, groups: int = 20) -> Estimate:
    """Computes a figure that is no mean, such as FID, of ``count`` scenes, with its interval; none below two scenes.

    The figure is computed without each of ``groups`` groups of scenes, too, and the spread of these is taken for normal
    (Tukey 1958): a bootstrap, which repeats scenes, would make FID larger.
    """
    every = np.arange(count)
    value, parts = figure(every), np.array_split(every, min(groups, count))
    if len(parts) < 2:
        return estimate(value, None)
    without = np.array([figure(np.setdiff1d(every, part)) for part in parts])
    share = (len(parts) - 1) / len(parts)
    error = np.sqrt(share * np.square(without - without.mean()).sum()) * stats.t.ppf(0.975, len(parts) - 1)
    return estimate(value, (float(value - error), float(value + error)))


def side_of(azimuth: Floats | float) -> NDArray[np.int64]:
    """Finds the side, 0 to 3, that a camera at ``azimuth`` sees."""
    return np.round(np.asarray(azimuth, float) / (pi / 2)).astype(np.int64) % 4


def sides_right(seen: Sequence[int] | NDArray[np.integer], azimuth: Floats) -> NDArray[np.bool_]:
    """Tells which of the sides ``seen`` (V,) fit cameras at ``azimuth`` (V,): within 45 degrees + ``SLACK`` of them."""
    away = np.asarray(azimuth, float) - np.asarray(seen, float) * (pi / 2)
    return np.abs((away + pi) % (2 * pi) - pi) <= pi / 4 + SLACK + 1e-9


def in_order(log_probability: Floats, azimuth: Floats) -> bool:
    """Tells whether the views together show the four sides in the order in which their cameras stand around the object.

    Of the 24 ways to give four sides to four views at right angles, the most probable must be the one that the
    cameras say: so not mirrored, not turned, no two swapped. ``log_probability`` (V, 4) of each view's side,
    ``azimuth`` (V,) evenly around; V is a multiple of 4, and each four of them at right angles are asked.
    """
    if len(azimuth) % 4:
        raise ValueError(f"the order of sides is asked of 4, 8, ... views (got {len(azimuth)})")
    ways = np.array(list(permutations(range(4))))
    for start in range(len(azimuth) // 4):
        ring = slice(start, None, len(azimuth) // 4)
        right = {tuple(side_of(np.asarray(azimuth)[ring] + near).tolist()) for near in (-SLACK, 0.0, SLACK)}
        likeliest = log_probability[ring][np.arange(4), ways].sum(1).argmax()
        if tuple(ways[likeliest].tolist()) not in right:
            return False
    return True
