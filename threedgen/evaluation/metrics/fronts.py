"""Number of fronts of an object, from a classifier of its views (Janus problem).

The views are on a ring: V cameras around the object, 2 pi / V apart, from any first azimuth, in radians. The four sides
are ``figures.SIDES``: front, left, back, right.
"""

from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import circulant

from .figures import SIDES, Floats, sides_right

FRONT = SIDES.index("front")
MIN_ANGLE = pi / 2
"""Maximum angle (radians) between views of the same front, which is visible up to 45 degrees to each side."""


@dataclass(frozen=True)
class RingResult:
    """Result of `classify_ring` for one object.

    Attributes:
        fronts: largest number of views that show a front and are pairwise more than 90 degrees apart.
        doubt: highest front threshold in [0, 1] at which the object has two fronts.
        shown: for each view, whether it shows a front.
        right: for each view, whether the classifier finds the side that its camera sees; see `directions`.
    """

    fronts: int
    doubt: float
    shown: tuple[bool, ...]
    right: tuple[bool, ...]

    @property
    def failed(self) -> bool:
        """Whether the object has the Janus problem: two views that are more than 90 degrees apart show a front."""
        return self.fronts > 1


def classify_ring(sides: Floats, azimuth: Floats, threshold: float, free: bool = False) -> RingResult:
    """Count the fronts of an object from the classified views of a ring.

    Args:
        sides: probabilities (V, 4) of the sides in each view.
        azimuth: azimuths (V,) of the cameras, radians.
        threshold: minimum smoothed probability of a front.
        free: whether the orientation of the object is unknown.
    """
    curve = front_curve(sides)
    return RingResult(
        fronts=front_count(curve, threshold),
        doubt=doubt(curve),
        shown=tuple((curve >= threshold).tolist()),
        right=tuple(directions(np.asarray(sides).argmax(1), azimuth, free).tolist()),
    )


def smooth(values: Floats) -> Floats:
    """Smooth values on a ring, (V,) or (V, C), with a triangular kernel that reaches 90 degrees to each side.

    This lowers the effect of a single misclassified view. For 8 views the weights are (1, 2, 1) / 4.
    """
    values = np.asarray(values, float)
    count = len(values)
    angle = np.minimum(np.arange(count), count - np.arange(count)) * (2 * pi / count)
    weight = np.maximum(0.0, 1 - angle / MIN_ANGLE)
    result: Floats = (circulant(weight) / weight.sum()) @ values
    return result


def front_curve(sides: Floats) -> Floats:
    """Return smoothed front probabilities (V,) from side probabilities (V, 4); 0 where another side is likelier."""
    smoothed = smooth(sides)
    return np.where(smoothed.argmax(1) == FRONT, smoothed[:, FRONT], 0.0)


def front_count(front: Floats, threshold: float) -> int:
    """Return the maximum number of views with ``front`` (V,) >= ``threshold`` that are pairwise > 90 degrees apart."""
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
    """Return the highest threshold at which `front_count` is at least two, from front probabilities (V,).

    It is the largest min(front_i, front_j) over all pairs of views that are more than 90 degrees apart.
    """
    front, index = np.asarray(front, float), np.arange(len(front))
    steps = np.abs(index[:, None] - index)
    angle = np.minimum(steps, len(front) - steps) * (2 * pi / len(front))
    return float(np.where(angle > MIN_ANGLE + 1e-6, np.minimum(front[:, None], front), 0.0).max())


def directions(sides: NDArray[np.integer], azimuth: Floats, free: bool = False) -> NDArray[np.bool_]:
    """Return for which views (V,) the classifier finds the side that the camera sees.

    Args:
        sides: most probable side of each view, indices (V,) in `figures.SIDES`.
        azimuth: azimuths (V,) of the cameras, radians.
        free: whether the orientation of the object is unknown. If so, all V rotations by multiples of 2 pi / V are
            tried, and the result with the most correct views is returned. This favours objects with random sides, so
            results with and without ``free`` are not comparable.
    """
    azimuth = np.asarray(azimuth, float)
    turns = 2 * pi / len(azimuth) * np.arange(len(azimuth) if free else 1)
    candidates = [sides_right(sides, azimuth + turn) for turn in turns]
    return max(candidates, key=lambda right: int(right.sum()))
