"""Plots of a report: points, axes and ticks."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threedgen.viewer import report as reports
from threedgen.viewer.report import plot, ticks


def coordinates(svg: str) -> list[tuple[float, float]]:
    """Return all points of the line of a plot."""
    (line,) = re.findall(r'class="line" d="M([^"]*)', svg)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]


@settings(max_examples=100)
@given(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=600), st.booleans())
def test_plot_stays_in_its_frame(values: list[float], from_zero: bool) -> None:
    svg = str(plot("x", list(enumerate(values, 1)), (1, len(values)), from_zero))
    points = coordinates(svg)
    assert len(points) == min(len(values), reports.MAX_POINTS)
    for x, y in points:
        assert reports.LEFT - 0.1 <= x <= reports.WIDTH - reports.RIGHT + 0.1
        assert reports.TOP - 0.1 <= y <= reports.HEIGHT - reports.BOTTOM + 0.1
    assert "nan" not in svg and "inf" not in svg


def test_plot_shows_the_logged_values() -> None:
    points = coordinates(str(plot("x", [(0, 1.0), (50, 3.0), (100, 2.0)], (-100, 100), False)))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 < y2 < y0
    assert x0 == pytest.approx((reports.LEFT + x2) / 2, abs=0.2)  # the axis starts before the first value
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.2)


def test_large_ratios_get_a_logarithmic_axis() -> None:
    svg = str(plot("Loss", [(step, 1000.0 * 10 ** (-step / 10)) for step in range(31)], (0, 30), False))
    (_, y0), *_, (_, y1) = line = coordinates(svg)
    assert line[15][1] == pytest.approx((y0 + y1) / 2, abs=0.2)  # a straight line
    assert all(f">{label}<" in svg for label in ("1", "10", "100", "1000"))


@given(st.floats(-1e9, 1e9), st.floats(1e-5, 10))
def test_ticks_are_round_and_on_the_axis(low: float, span: float) -> None:
    high = low + span * max(1, abs(low))
    found = ticks(low, high)
    assert 1 <= len(found) <= reports.MAX_TICKS and all(
        low - 1e-6 * span <= tick <= high + 1e-6 * (high - low) for tick in found
    )
    if len(found) > 1:
        step = found[1] - found[0]
        assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 3) in (1, 2, 5)
