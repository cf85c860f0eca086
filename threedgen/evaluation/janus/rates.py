"""From the share of objects that the meter calls Janus to the share that is: its own errors taken out."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

from threedgen.evaluation.metrics.figures import Share

Z = 1.959963984540054
LEAST = 0.2
"""A meter whose recall exceeds its false alarms by less says too little for its figures to be corrected."""


@dataclass(frozen=True)
class ErrorRates:
    """Measured on objects whose truth is known: ``alarms``, good ones that the meter calls Janus; ``hits``, two-faced
    ones that it does. The threshold is the one that both were measured with."""

    alarms: Share
    hits: Share
    threshold: float

    @property
    def useful(self) -> bool:
        return bool(self.alarms.total and self.hits.total) and self._spread() >= LEAST

    def _spread(self) -> float:
        return self.hits.hits / self.hits.total - self.alarms.hits / self.alarms.total

    def corrected(self, raw: Share) -> float | None:
        """Computes (raw - alarms) / (hits - alarms) in [0, 1] (Rogan and Gladen 1978); None where there is nothing to
        correct or the meter is no good."""
        if not self.useful or raw.value is None or self.alarms.value is None:
            return None
        return min(1.0, max(0.0, (raw.value - self.alarms.value) / self._spread()))

    def interval(self, raw: Share) -> tuple[float, float] | None:
        """Finds the 95 % interval of the corrected rate, the error rates being measured too (Lang and Reiczigel
        2014): each share is moved a little towards one half, and the variances of all three are added up."""
        point = self.corrected(raw)
        if point is None:
            return None
        n, n_hits, n_good = raw.total + Z * Z, self.hits.total + 2, self.alarms.total + 2
        seen = (raw.hits + Z * Z / 2) / n
        recall = (self.hits.hits + 1) / n_hits
        quiet = (self.alarms.total - self.alarms.hits + 1) / n_good  # specificity
        slope = recall + quiet - 1
        if slope <= 0:
            return 0.0, 1.0
        rate = (seen + quiet - 1) / slope
        of_hits, of_good = recall * (1 - recall) / n_hits, quiet * (1 - quiet) / n_good
        shift = 2 * Z * Z * (rate * of_hits - (1 - rate) * of_good)
        half = Z * sqrt(seen * (1 - seen) / n + rate**2 * of_hits + (1 - rate) ** 2 * of_good) / slope
        low, high = (min(1.0, max(0.0, rate + shift + sign * half)) for sign in (-1, 1))
        return min(low, point), max(high, point)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"false_alarms": self.alarms.plain(), "recall": self.hits.plain(), "threshold": self.threshold}

    @classmethod
    def from_plain(cls, tree: dict[str, Any]) -> ErrorRates:
        """Raises KeyError, TypeError or ValueError for anything else."""
        return cls(Share.of(tree["false_alarms"]), Share.of(tree["recall"]), float(tree["threshold"]))
