"""Plots of a report: inside the frame, round ticks, correct values."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from threedgen.viewer import plots


def coordinates(svg: str) -> list[tuple[float, float]]:
    """Return all points of the lines of a plot."""
    lines = re.findall(r'class="(?:line|spread)" d="M([^"Z]*)', svg)
    return [(float(x), float(y)) for line in lines for x, y in (pair.split(",") for pair in line.split())]


@settings(max_examples=200)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False).filter(plots.drawable), min_size=1, max_size=600))
def test_plot_stays_in_its_frame(values: list[float]) -> None:
    for from_zero in (False, min(values) >= 0):
        svg = str(plots.plot("x", list(enumerate(values, 1)), (1, len(values)), from_zero))
        points = coordinates(svg)
        assert len(points) >= min(len(values), plots.MAX_POINTS)
        for x, y in points:
            assert plots.LEFT - 0.1 <= x <= plots.WIDTH - plots.RIGHT + 0.1
            assert plots.TOP - 0.1 <= y <= plots.HEIGHT - plots.BOTTOM + 0.1
        assert "nan" not in svg and "inf" not in svg


def test_plot_shows_the_logged_values() -> None:
    points = coordinates(str(plots.plot("x", [(0, 1.0), (50, 3.0), (100, 2.0)], (-100, 100))))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y1 < y2 < y0
    assert x0 == pytest.approx((plots.LEFT + x2) / 2, abs=0.2)  # the axis starts before the first value
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.2)


def test_large_ratios_get_a_logarithmic_axis() -> None:
    points = [(step, 1000.0 * 10 ** (-step / 10)) for step in range(31)]
    (x0, y0), *_, (x1, y1) = line = coordinates(str(plots.plot("Loss", points, (0, 30))))
    assert line[15][1] == pytest.approx((y0 + y1) / 2, abs=0.2)  # a straight line
    assert plots.axis([v for _, v in points]).ticks() == [1.0, 10.0, 100.0, 1000.0]
    assert not plots.axis([0.0, 1000.0]).log and not plots.axis([10.0, 50.0]).log


@given(st.floats(-1e9, 1e9), st.floats(1e-5, 10))
def test_ticks_are_round_and_on_the_axis(low: float, span: float) -> None:
    axis = plots.Axis(low, low + span * max(1, abs(low)))
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= plots.MAX_TICKS and all(-1e-6 <= axis.at(tick) <= 1 + 1e-6 for tick in ticks)
    if len(ticks) > 1:
        step = ticks[1] - ticks[0]
        assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 3) in (1, 2, 5)


def test_downsampling_keeps_peaks() -> None:
    points = [(float(step), 1.0) for step in range(10_000)]
    points[5_003] = (5_003.0, 100.0)
    means, spread = plots.downsample(points)
    assert len(means) == plots.MAX_POINTS and max(high for _, _, high in spread) == 100.0
    assert coordinates(str(plots.plot("x", points, (0, 9999))))[0][0] == pytest.approx(plots.LEFT, abs=1)
