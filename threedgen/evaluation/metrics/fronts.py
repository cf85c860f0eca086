"""Count of the fronts of an object from classified views, and Janus rates corrected for errors of the classification.

The V cameras are on a ring around the object. Their azimuths, in radians, are 2 pi / V apart and start anywhere. The
four sides are ``figures.SIDES``: front, left, back, right.
"""

from dataclasses import dataclass, fields
from math import pi, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import circulant

from .figures import SIDES, Floats, Interval, Json, Proportion, Z, correct_sides

FRONT = SIDES.index("front")
MIN_ANGLE = pi / 2  # angle in radians that separates fronts: two views of the same front are at most this far apart
MIN_DIFFERENCE = 0.2
"""Minimum difference between recall and false alarm rate. If the difference is smaller, rates are not corrected."""


@dataclass(frozen=True)
class RingResult:
    """Result of `classify_ring` for one object.

    Attributes:
        fronts: number of fronts: the largest number of views that show a front and are pairwise more than 90 degrees
            apart.
        certainty: how clearly a front is visible: the largest front probability, in [0, 1], among the views that more
            probably show the front than any other side. The probabilities are first smoothed over neighbouring views.
            It is 0 if there are no such views, or if the probability that the object has a front is below 0.5.
        shown: for each view, whether it shows a front.
        correct: for each view, whether the classified side is correct: the side that the camera sees, with a tolerance
            of 15 degrees.
    """

    fronts: int
    certainty: float
    shown: tuple[bool, ...]
    correct: tuple[bool, ...]

    @property
    def several(self) -> bool | None:
        """True if the object has two fronts or more (Janus problem), False if it has one, None if it has none."""
        return self.fronts > 1 if self.fronts else None


def classify_ring(sides: Floats, azimuth: Floats, threshold: float, unknown_orientation: bool = False) -> RingResult:
    """Count the fronts of an object in V views from a ring of cameras, and check the side that each view shows.

    A view shows a front if the front is its likeliest side and has at least the probability ``threshold``. Before this
    test, the probabilities are smoothed over neighbouring views, and divided by the probability p that the object has a
    front: the sum of the four sides, averaged over the views. If p is below 0.5, no view shows a front.

    Neighbouring views often show the same front. The number of fronts is therefore the largest number of views that
    show a front and are pairwise more than 90 degrees apart.

    Args:
        sides: probabilities (V, 4) that a view shows the front, left, back or right side. If the four of a view sum to
            less than 1, the rest is the probability that the object has no front.
        azimuth: azimuths (V,) of the cameras, radians, 2 pi / V apart. They are used only to check the sides.
        threshold: minimum front probability of a view that shows a front.
        unknown_orientation: False: azimuth 0 is in front of the object. True: the object may face any way; the way for
            which most views show the correct side is assumed. The number of fronts does not depend on this.

    Returns:
        Number of fronts, how clearly a front is visible, and for each view whether it shows a front, and whether its
        likeliest side is the side that the camera sees.
    """
    curve = front_curve(sides)
    return RingResult(
        fronts=front_count(curve, threshold),
        certainty=float(curve.max() * has_front(sides)),
        shown=tuple((curve >= threshold).tolist()),
        correct=tuple(directions(np.asarray(sides).argmax(1), azimuth, unknown_orientation).tolist()),
    )


def smooth(values: Floats) -> Floats:
    """Smooth values of a ring of views, (V,) or (V, C), with a triangular kernel that reaches 90 degrees to each side.

    C is the number of values per view. The views are evenly spaced, and the weights for 8 views are (1, 2, 1) / 4.
    Smoothing lowers the effect of a single misclassified view.
    """
    values = np.asarray(values, float)
    count = len(values)
    angle = np.minimum(np.arange(count), count - np.arange(count)) * (2 * pi / count)
    weight = np.maximum(0.0, 1 - angle / MIN_ANGLE)
    result: Floats = (circulant(weight) / weight.sum()) @ values
    return result


def has_front(sides: Floats) -> float:
    """Return the probability that an object has a front: the sum of its side probabilities, mean over V views.

    The four ``sides`` (V, 4) of a view may sum to less than 1; the rest is the probability that there is no front.
    """
    return float(np.sum(sides, axis=1).mean())


def front_curve(sides: Floats) -> Floats:
    """Return the front probability (V,) in each of V evenly spaced views of a ring, given that the object has a front.

    `sides` (V, 4) has the probabilities of front, left, back and right in each view. Their sum, averaged over the
    views, is the probability p that the object has a front. All four are smoothed over neighbouring views (`smooth`)
    and divided by p. The result is 0 in views in which another side is more probable than the front, and in all views
    if p is below 0.5.
    """
    if (probability := has_front(sides)) < 0.5:
        return np.zeros(len(sides))
    smoothed = smooth(sides) / probability
    return np.where(smoothed.argmax(1) == FRONT, smoothed[:, FRONT], 0.0)


def front_count(front: Floats, threshold: float) -> int:
    """Return the largest number of views that show a front and are pairwise more than 90 degrees apart.

    ``front`` (V,) has the smoothed front probabilities of evenly spaced views. At ``threshold`` or more, a view shows a
    front.
    """
    angles = 2 * pi * np.flatnonzero(np.asarray(front) >= threshold) / len(front)
    most = 0
    for start in angles:  # greedily take every front far enough from the previous one, once around from each start
        count, last = 1, 0.0
        for angle in np.sort((angles - start) % (2 * pi)):
            if angle - last > MIN_ANGLE + 1e-6 and 2 * pi - angle > MIN_ANGLE + 1e-6:
                count, last = count + 1, angle
        most = max(most, count)
    return most


def directions(sides: NDArray[np.integer], azimuth: Floats, unknown_orientation: bool = False) -> NDArray[np.bool_]:
    """Return a bool mask (V,) of the views whose classified side is the side that the camera sees.

    Args:
        sides: most probable side of each view (V,): 0 front, 1 left, 2 back, 3 right.
        azimuth: azimuths (V,) of the cameras, radians; 0 sees the front. Side k is correct within 60 degrees of the
            azimuth k * 90 degrees.
        unknown_orientation: False: the object faces azimuth 0. True: of V orientations, 2 pi / V apart, the one with
            the most correct views is assumed. This favours objects with random sides, so do not compare results with
            and without ``unknown_orientation``.
    """
    azimuth = np.asarray(azimuth, float)
    turns = 2 * pi / len(azimuth) * np.arange(len(azimuth) if unknown_orientation else 1)
    candidates = [correct_sides(sides, azimuth + turn) for turn in turns]
    return max(candidates, key=lambda correct: int(correct.sum()))


@dataclass(frozen=True)
class ErrorRates:
    """Error rates of the Janus meter (view classifier and `classify_ring`) on objects with a known number of fronts.

    The meter counts the fronts of an object. As in a Janus rate (share of objects with several fronts), objects in
    which the meter finds no front are not counted in ``false_alarms`` and ``recall``. Each attribute is a `Proportion`
    (hits, total and 95 % interval). The names of the attributes are also the keys in JSON files.

    Attributes:
        false_alarms: share of objects with one front in which the meter finds several.
        recall: share of objects with two fronts in which the meter finds several.
        front_missed: share of objects with one or two fronts in which the meter finds none.
        front_invented: share of objects without a front in which the meter finds at least one.
    """

    false_alarms: Proportion
    recall: Proportion
    front_missed: Proportion = Proportion(0, 0)
    front_invented: Proportion = Proportion(0, 0)

    @property
    def useful(self) -> bool:
        return bool(self.false_alarms.total and self.recall.total) and self._difference() >= MIN_DIFFERENCE

    def _difference(self) -> float:
        return self.recall.hits / self.recall.total - self.false_alarms.hits / self.false_alarms.total

    def corrected(self, raw: Proportion) -> float | None:
        """Correct a measured Janus rate for the errors of the meter: (raw - false_alarms) / (recall - false_alarms).

        ``raw`` is the share of objects in which the meter finds several fronts, among those in which it finds any. The
        attributes ``false_alarms`` and ``recall`` are this share for test objects with one front and for test objects
        with two. The result is clamped to [0, 1]. It is None if one of the three shares has no objects, or if the
        divisor is below 0.2 (`MIN_DIFFERENCE`). The method is from Rogan and Gladen 1978.
        """
        if not self.useful or raw.value is None or self.false_alarms.value is None:
            return None
        return min(1.0, max(0.0, (raw.value - self.false_alarms.value) / self._difference()))

    def interval(self, raw: Proportion) -> Interval | None:
        """Return the 95 % interval of the true Janus rate, which `corrected` estimates from the measured rate ``raw``.

        The Janus rate is the share of objects with several fronts. The interval includes the uncertainty of ``raw`` and
        of the meter's two error rates: ``false_alarms`` and ``recall``, the shares of test objects with one front and
        with two fronts in which the meter finds several. The method is that of Lang and Reiczigel 2014 for a prevalence
        measured by a test with errors.

        The result is None if `corrected` returns None: without measured objects, or if the error rates differ too
        little. Answers that depend on each other, such as those for several seeds of a prompt, usually make the
        interval longer (`Proportion.sample_size`).
        """
        rate = self.corrected(raw)
        if rate is None:
            return None
        n, n_hits, n_alarms = raw.sample_size + Z * Z, self.recall.sample_size + 2, self.false_alarms.sample_size + 2
        measured = (raw.hits / raw.total * (n - Z * Z) + Z * Z / 2) / n
        sensitivity = (self.recall.hits / self.recall.total * (n_hits - 2) + 1) / n_hits
        specificity = ((1 - self.false_alarms.hits / self.false_alarms.total) * (n_alarms - 2) + 1) / n_alarms
        slope = sensitivity + specificity - 1
        if slope <= 0:
            return 0.0, 1.0
        p = (measured + specificity - 1) / slope
        var_hits, var_alarms = sensitivity * (1 - sensitivity) / n_hits, specificity * (1 - specificity) / n_alarms
        shift = 2 * Z * Z * (p * var_hits - (1 - p) * var_alarms)
        half = Z * sqrt(measured * (1 - measured) / n + p**2 * var_hits + (1 - p) ** 2 * var_alarms) / slope
        low, high = (min(1.0, max(0.0, p + shift + sign * half)) for sign in (-1, 1))
        return min(low, rate), max(high, rate)

    def plain(self) -> Json:
        return {name: rate.plain() for name, rate in vars(self).items()}

    @classmethod
    def from_plain(cls, tree: Json) -> "ErrorRates":
        return cls(**{field.name: Proportion.of(tree[field.name]) for field in fields(cls)})
