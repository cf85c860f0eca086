"""Correction of a measured Janus rate for the errors of the meter."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from threedgen.evaluation.metrics.figures import Interval, Json, Share

Z = 1.959963984540054
MIN_DIFFERENCE = 0.2
"""Minimum difference of recall and false alarm rate with which a rate is corrected."""


@dataclass(frozen=True)
class ErrorRates:
    """Error rates of the meter on objects with known fronts.

    Attributes:
        alarms: objects with one front that the meter calls Janus.
        hits: objects with two fronts that it calls Janus.
        threshold: front probability that both were measured with.
    """

    alarms: Share
    hits: Share
    threshold: float

    @property
    def useful(self) -> bool:
        """Whether rates can be corrected."""
        return bool(self.alarms.total and self.hits.total) and self._difference() >= MIN_DIFFERENCE

    def _difference(self) -> float:
        return self.hits.hits / self.hits.total - self.alarms.hits / self.alarms.total

    def corrected(self, raw: Share) -> float | None:
        """Return (raw - alarms) / (hits - alarms) in [0, 1] (Rogan and Gladen 1978); None if it is undefined."""
        if not self.useful or raw.value is None or self.alarms.value is None:
            return None
        return min(1.0, max(0.0, (raw.value - self.alarms.value) / self._difference()))

    def interval(self, raw: Share) -> Interval | None:
        """Return the 95 % interval of the corrected rate with measured error rates (Lang and Reiczigel 2014).

        Each share is moved slightly towards one half, and the variances of all three are added.
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
        """Convert to JSON."""
        return {"false_alarms": self.alarms.plain(), "recall": self.hits.plain(), "threshold": self.threshold}

    @classmethod
    def from_plain(cls, tree: Json) -> ErrorRates:
        """Convert from JSON. Raises KeyError, TypeError or ValueError."""
        return cls(Share.of(tree["false_alarms"]), Share.of(tree["recall"]), float(tree["threshold"]))
