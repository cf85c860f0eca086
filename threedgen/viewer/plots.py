"""Make line plots over training steps as inline SVG. The file page.css sets colours and fonts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from threedgen.run.text import number

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 28
MAX_TICKS, MAX_POINTS = 5, 240
"""Maximum number of axis ticks, and of points of a curve. A longer curve is averaged to MAX_POINTS means, with a band
from minimum to maximum."""
LOG_RATIO = 30.0
"""Ratio of maximum to minimum above which positive values get a logarithmic axis."""

Point = tuple[float, float]
"""Step and value."""


@dataclass(frozen=True)
class Axis:
    """Axis of a plot: linear or logarithmic map from values in [low, high] to positions in [0, 1], with round ticks."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return a few round values in [low, high].

        On a linear axis they are multiples of 1, 2 or 5 times a power of ten. On a logarithmic axis they are powers of
        ten, and on a short one also 3 times a power of ten.
        """
        if self.log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            if last - first < 1:
                values = [value for k in range(first - 1, last + 1) for value in (10.0**k, 3 * 10.0**k)]
                return [value for value in values if self.low <= value <= self.high]
            return [10.0**k for k in range(first, last + 1, -(-(last - first + 1) // MAX_TICKS))]
        unit = 10.0 ** math.floor(math.log10((self.high - self.low) / MAX_TICKS))
        for step in (unit, 2 * unit, 5 * unit, 10 * unit, 20 * unit):
            first, last = math.ceil(self.low / step), math.floor(self.high / step)
            if last - first < MAX_TICKS:
                break
        return [k * step for k in range(first, last + 1)]


def axis(values: Sequence[float], from_zero: bool = False) -> Axis:
    """Return an axis that contains all values, with a margin of 5 %. The values are finite, and there is at least one.

    `from_zero` makes a linear axis that starts at zero, or at the minimum if it is negative.
    """
    low, high = min(values), max(values)
    if low > 0 and high / low > LOG_RATIO and not from_zero:
        room = (high / low) ** 0.05
        return Axis(low / room, high * room, log=True)
    low = min(low, 0.0) if from_zero else low
    room = 0.05 * (high - low) or abs(high) or 1.0
    return Axis(low if from_zero else low - room, high + room)


def downsample(points: Sequence[Point]) -> tuple[list[Point], list[tuple[float, float, float]]]:
    """Average points, sorted by step, to at most MAX_POINTS means.

    Returns the means, and (step, minimum, maximum) of each averaged block, so that the plot can show peaks. The second
    list is empty if there are few points and nothing is averaged.
    """
    if len(points) <= MAX_POINTS:
        return list(points), []
    means, spread = [], []
    for a, b in pairwise(k * len(points) // MAX_POINTS for k in range(MAX_POINTS + 1)):
        steps, values = zip(*points[a:b], strict=True)
        means.append((sum(steps) / (b - a), sum(values) / (b - a)))
        spread.append((means[-1][0], min(values), max(values)))
    return means, spread


def drawable(value: float) -> bool:
    """Return whether a value can be plotted: it is zero, or its absolute value is in (1e-30, 1e30)."""
    return value == 0 or 1e-30 < abs(value) < 1e30


def plot(title: str, points: Sequence[Point], steps: Point, from_zero: bool = False) -> Markup:
    """Return a line plot as SVG.

    Args:
        title: name of the quantity, for screen readers.
        points: at least one (step, value), sorted by step, all `drawable`.
        steps: first and last step of the horizontal axis.
        from_zero: start the value axis at zero.
    """
    means, spread = downsample(points)
    x = Axis(*steps) if steps[1] > steps[0] else axis(steps)
    y = axis([value for _, value in points], from_zero)

    def place(step: float, value: float) -> str:
        across = LEFT + x.at(step) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - y.at(value) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f},{down:.1f}"

    parts = []
    for tick in y.ticks():
        down = place(steps[0], tick).partition(",")[2]
        parts.append(f'<path class="rule" d="M{LEFT},{down}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{down}" dy="4" text-anchor="end">{number(tick)}</text>')
    for tick in x.ticks():
        across = place(tick, y.low).partition(",")[0]
        anchor = "end" if float(across) > WIDTH - RIGHT - 20 else "middle"
        parts.append(f'<text class="tick" x="{across}" y="{HEIGHT - 8}" text-anchor="{anchor}">{tick:g}</text>')
    if spread:
        outline = [place(s, high) for s, _, high in spread] + [place(s, low) for s, low, _ in spread[::-1]]
        parts.append(f'<path class="spread" d="M{" ".join(outline)}Z"/>')
    parts.append(f'<path class="line" d="M{" ".join(place(*point) for point in means)}"/>')
    across, _, down = place(*means[-1]).partition(",")
    parts.append(f'<circle class="end" cx="{across}" cy="{down}" r="3"/>')
    (first, start), (last, end) = points[0], points[-1]
    label = escape(f"{title}: {number(start)} at step {first:g}, {number(end)} at step {last:g}")
    head = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return Markup(head + "".join(parts) + "</svg>")
