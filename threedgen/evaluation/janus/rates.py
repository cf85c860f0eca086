"""Correction of a measured Janus rate for false alarms and missed fronts of the meter."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from threedgen.evaluation.metrics.figures import Interval, Json, Share

Z = 1.959963984540054
MIN_DIFFERENCE = 0.2
"""Minimum difference between recall and false alarm rate. With a smaller one, rates are not corrected."""


@dataclass(frozen=True)
class ErrorRates:
    """Error rates of the meter on objects with a known number of fronts.

    Attributes:
        alarms: false alarm rate, the share of objects with one front that the meter calls Janus.
        hits: recall, the share of objects with two fronts that the meter calls Janus.
        threshold: front probability threshold at which both were measured.
    """

    alarms: Share
    hits: Share
    threshold: float

    @property
    def useful(self) -> bool:
        """Whether recall and false alarm rate differ enough to correct measured rates."""
        return bool(self.alarms.total and self.hits.total) and self._difference() >= MIN_DIFFERENCE

    def _difference(self) -> float:
        return self.hits.hits / self.hits.total - self.alarms.hits / self.alarms.total

    def corrected(self, raw: Share) -> float | None:
        """Correct a measured Janus rate: (raw - alarms) / (hits - alarms), clipped to [0, 1] (Rogan and Gladen 1978).

        Returns None if the rate is undefined or cannot be corrected.
        """
        if not self.useful or raw.value is None or self.alarms.value is None:
            return None
        return min(1.0, max(0.0, (raw.value - self.alarms.value) / self._difference()))

    def interval(self, raw: Share) -> Interval | None:
        """Return the 95 % interval of the corrected rate; None if there is no corrected rate.

        The interval includes the uncertainty of the measured error rates (Lang and Reiczigel 2014): each of the three
        shares is moved slightly towards one half, and the three variances are added.
        """
        rate = self.corrected(raw)
        if rate is None:
            return None
        n, n_hits, n_alarms = raw.total + Z * Z, self.hits.total + 2, self.alarms.total + 2
        measured = (raw.hits + Z * Z / 2) / n
        sensitivity = (self.hits.hits + 1) / n_hits
        specificity = (self.alarms.total - self.alarms.hits + 1) / n_alarms
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
        """Return the error rates as a JSON object."""
        return {"false_alarms": self.alarms.plain(), "recall": self.hits.plain(), "threshold": self.threshold}

    @classmethod
    def from_plain(cls, tree: Json) -> ErrorRates:
        """Read error rates from the JSON object of `plain`. Raises KeyError, TypeError or ValueError."""
        return cls(Share.of(tree["false_alarms"]), Share.of(tree["recall"]), float(tree["threshold"]))
