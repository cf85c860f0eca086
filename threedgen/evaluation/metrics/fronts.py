"""Judges an object by what single views show: counts its fronts on a ring, and says whether there are too many.

A ring is V views at azimuths 2 pi k / V (any start). Sides are those of ``figures.SIDES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import circulant

from .figures import Floats, sides_right

FRONT = 0
APART = pi / 2
"""Of one real front, views up to 45 degrees to each side show it: at most this far apart (radians)."""


@dataclass(frozen=True)
class RingResult:
    """What a ring of views says of an object.

    ``fronts``: the most views that show a front and are all more than 90 degrees apart; ``doubt`` in [0, 1]: the
    highest threshold at which there are still two fronts; ``shown``: which views show a front; ``right``: which show
    the side that their camera faces (see ``directions``).
    """

    fronts: int
    doubt: float
    shown: tuple[bool, ...]
    right: tuple[bool, ...]

    @property
    def failed(self) -> bool:
        """A Janus failure: two views more than 90 degrees apart show a front."""
        return self.fronts > 1


def classify_ring(sides: Floats, azimuth: Floats, threshold: float, free: bool = False) -> RingResult:
    """Judges the probabilities ``sides`` (V, 4) of V views, whose cameras stand at ``azimuth`` (V,), radians.

    free: nobody knows where the object's front should be.
    """
    curve = front_curve(sides)
    return RingResult(
        fronts=front_count(curve, threshold),
        doubt=doubt(curve),
        shown=tuple((curve >= threshold).tolist()),
        right=tuple(directions(np.asarray(sides).argmax(1), azimuth, free).tolist()),
    )


def smooth(values: Floats) -> Floats:
    """Averages curves around the object, (V,) or (V, C), with a hat of 90 degrees to each side: one view alone
    hardly makes a front. Of 8 views the weights are (1, 2, 1) / 4."""
    values = np.asarray(values, float)
    count = len(values)
    away = np.minimum(np.arange(count), count - np.arange(count)) * (2 * pi / count)
    weight = np.maximum(0.0, 1 - away / APART)
    result: Floats = (circulant(weight) / weight.sum()) @ values
    return result


def front_curve(sides: Floats) -> Floats:
    """Rates how surely each view shows a front, (V,): its smoothed probability, 0 where another side is likelier."""
    even = smooth(sides)
    return np.where(even.argmax(1) == FRONT, even[:, FRONT], 0.0)


def front_count(front: Floats, threshold: float) -> int:
    """Counts the fronts of an object: the most views with ``front`` (V,) >= ``threshold`` that are all more than
    ``APART`` from each other."""
    angles = 2 * pi * np.flatnonzero(np.asarray(front) >= threshold) / len(front)
    most = 0
    for start in angles:  # on one turn from each of them, every front that is far enough from the one before
        count, last = 1, 0.0
        for angle in np.sort((angles - start) % (2 * pi)):
            if angle - last > APART + 1e-6 and 2 * pi - angle > APART + 1e-6:
                count, last = count + 1, angle
        most = max(most, count)
    return most


def doubt(front: Floats) -> float:
    """Finds the highest threshold at which ``front_count`` finds two fronts: of all pairs of views more than ``APART``
    from each other, the largest min(front_i, front_j)."""
    front, steps = np.asarray(front, float), np.arange(len(front))
    between = np.abs(steps[:, None] - steps)
    angle = np.minimum(between, len(front) - between) * (2 * pi / len(front))
    return float(np.where(angle > APART + 1e-6, np.minimum(front[:, None], front), 0.0).max())


def directions(seen: NDArray[np.integer], azimuth: Floats, free: bool = False) -> NDArray[np.bool_]:
    """Tells which views (V,) show the side that their camera faces.

    With ``free``, the object may face any of the V directions: the one that makes most views right is taken. That
    flatters an object whose sides are random, so figures of both kinds are not to be compared.
    """
    azimuth = np.asarray(azimuth, float)
    turns = 2 * pi / len(azimuth) * np.arange(len(azimuth) if free else 1)
    ways = [sides_right(seen, azimuth + turn) for turn in turns]
    return max(ways, key=lambda right: int(right.sum()))
