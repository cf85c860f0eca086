"""Figures of held-out views, and of scenes together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

Floats = NDArray[np.floating]

WINDOW = 11
"""Pixels a side of SSIM's Gaussian window of sigma 1.5 (Wang et al. 2004)."""


def ssim(truth: Floats, image: Floats) -> float | None:
    """Structural similarity of two pictures (H, W, 3) in [0, 1], the Gaussian kind; None below ``WINDOW`` pixels."""
    if min(truth.shape[:2]) < WINDOW:
        return None
    return float(
        structural_similarity(
            np.asarray(truth, np.float64), np.asarray(image, np.float64), data_range=1.0, channel_axis=-1,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
    )  # fmt: skip


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that there are."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def bootstrap(
    values: Sequence[float | None], rng: np.random.Generator, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of the mean over scenes that are drawn with replacement; None below two scenes."""
    there = np.array([value for value in values if value is not None], np.float64)
    if len(there) < 2:
        return None
    means = there[rng.integers(0, len(there), (resamples, len(there)))].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
