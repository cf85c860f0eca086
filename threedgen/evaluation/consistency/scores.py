"""Figures of held-out views."""

from __future__ import annotations

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
