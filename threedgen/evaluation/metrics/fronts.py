"""Number of fronts of an object, from the side probabilities of views on a ring.

A ring has V views at azimuths 2 pi k / V (any start). Sides are those of ``figures.SIDES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import circulant

from .figures import SIDES, Floats, sides_right

FRONT = SIDES.index("front")
MIN_ANGLE = pi / 2
"""One real front is visible up to 45 degrees to each side, so its views are at most this far apart (radians)."""


@dataclass(frozen=True)
class RingResult:
    """Evaluation of a ring of views.

    Attributes:
        fronts: largest number of views that show a front and are all more than 90 degrees apart.
        doubt: highest threshold in [0, 1] at which there are two fronts.
        shown: for each view, whether it shows a front.
        right: for each view, whether it shows the side that its camera faces; see `directions`.
    """

    fronts: int
    doubt: float
    shown: tuple[bool, ...]
    right: tuple[bool, ...]

    @property
    def failed(self) -> bool:
        """Whether the object has the Janus problem: two views more than 90 degrees apart show a front."""
        return self.fronts > 1


def classify_ring(sides: Floats, azimuth: Floats, threshold: float, free: bool = False) -> RingResult:
    """Evaluate the side probabilities (V, 4) of V views.

    Args:
        azimuth: of the cameras, (V,), radians.
        threshold: minimum probability of a front.
        free: the orientation of the object is unknown.
    """
    curve = front_curve(sides)
    return RingResult(
        fronts=front_count(curve, threshold),
        doubt=doubt(curve),
        shown=tuple((curve >= threshold).tolist()),
        right=tuple(directions(np.asarray(sides).argmax(1), azimuth, free).tolist()),
    )


def smooth(values: Floats) -> Floats:
    """Smooth values on a ring, (V,) or (V, C), with a triangular kernel of 90 degrees to each side.

    A single view thus hardly makes a front. For 8 views the weights are (1, 2, 1) / 4.
    """
    values = np.asarray(values, float)
    count = len(values)
    angle = np.minimum(np.arange(count), count - np.arange(count)) * (2 * pi / count)
    weight = np.maximum(0.0, 1 - angle / MIN_ANGLE)
    result: Floats = (circulant(weight) / weight.sum()) @ values
    return result


def front_curve(sides: Floats) -> Floats:
    """Return the smoothed front probability of each view, (V,); 0 where another side is more probable."""
    smoothed = smooth(sides)
    return np.where(smoothed.argmax(1) == FRONT, smoothed[:, FRONT], 0.0)


def front_count(front: Floats, threshold: float) -> int:
    """Return the largest number of views with ``front`` (V,) >= ``threshold`` that are pairwise > 90 degrees apart."""
    angles = 2 * pi * np.flatnonzero(np.asarray(front) >= threshold) / len(front)
    most = 0
    for start in angles:  # greedily take every front far enough from the previous one, once around from each start
        count, last = 1, 0.0
        for angle in np.sort((angles - start) % (2 * pi)):
            if angle - last > MIN_ANGLE + 1e-6 and 2 * pi - angle > MIN_ANGLE + 1e-6:
                count, last = count + 1, angle
        most = max(most, count)
    return most


def doubt(front: Floats) -> float:
    """Return the highest threshold at which `front_count` is two.

    It is the largest min(front_i, front_j) over pairs of views more than 90 degrees apart.
    """
    front, index = np.asarray(front, float), np.arange(len(front))
    steps = np.abs(index[:, None] - index)
    angle = np.minimum(steps, len(front) - steps) * (2 * pi / len(front))
    return float(np.where(angle > MIN_ANGLE + 1e-6, np.minimum(front[:, None], front), 0.0).max())


def directions(sides: NDArray[np.integer], azimuth: Floats, free: bool = False) -> NDArray[np.bool_]:
    """Return which views (V,) show the side that their camera faces.

    Args:
        free: the object may face any of the V directions; the one with the most correct views is taken. This favours
            objects with random sides, so figures with and without it are not comparable.
    """
    azimuth = np.asarray(azimuth, float)
    turns = 2 * pi / len(azimuth) * np.arange(len(azimuth) if free else 1)
    candidates = [sides_right(sides, azimuth + turn) for turn in turns]
    return max(candidates, key=lambda right: int(right.sum()))
