"""Colour metrics of known images."""

import numpy as np
import pytest

from threedgen.evaluation.metrics.distributions import colour_disagreement, foreground_means, mottle

MASK = np.zeros((2, 64, 64), bool)
MASK[:, 16:48, 16:48] = True


def painted(*colours: tuple[float, float, float]) -> np.ndarray:
    """Two views with stripes of these colours in the mask, on grey."""
    views = np.full((2, 64, 64, 3), 0.5)
    for k, colour in enumerate(colours):
        views[:, 16 + k * 32 // len(colours) : 48, 16:48] = colour
    return views


def test_foreground_means_exclude_the_background() -> None:
    red, none = foreground_means(painted((1, 0, 0)), np.stack([MASK[0], np.zeros((64, 64), bool)]))
    assert red == pytest.approx([53.2, 80.1, 67.2], abs=0.1)  # sRGB red in CIE Lab
    assert none is None


def test_colour_disagreement_is_the_mean_pairwise_distance() -> None:
    a, b = np.zeros(3), np.array([3.0, 4.0, 0.0])
    assert colour_disagreement([a, a, b], 99) == pytest.approx((0 + 5 + 5) / 3)
    assert colour_disagreement([a, a, None], 30) == pytest.approx((0 + 30 + 30) / 3)


def test_mottle_of_few_flat_colours_is_zero() -> None:
    for colours in ([(1, 0, 0)], [(1, 0, 0), (0, 0, 1)], [(1, 0, 0), (0, 0, 1), (0, 1, 0), (1, 1, 0)]):
        assert mottle(painted(*colours), MASK) == pytest.approx(0, abs=1e-3)


def test_mottle_grows_with_spots_of_colour() -> None:
    flat, rng = painted((0.6, 0.3, 0.2)), np.random.default_rng(0)
    little, much = (np.clip(flat + rng.normal(0, s, flat.shape), 0, 1) for s in (0.05, 0.2))
    assert 0 < mottle(little, MASK) < mottle(much, MASK)  # type: ignore[operator]


def test_mottle_without_foreground_is_none() -> None:
    assert mottle(painted((1, 0, 0)), np.zeros_like(MASK)) is None
