"""Colour metrics in CIE Lab: colour differences between the views of an object, and mottle (patchy colours)."""

import warnings
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.ndimage import binary_erosion
from skimage.color import rgb2lab

PALETTE = 4
"""Number of colours of the palette in `mottle`."""
MOTTLE_PIXELS = 4000
"""Number of random foreground pixels, over all views, that `mottle` is computed on."""
MIN_FOREGROUND = 0.01
"""Minimum share of foreground pixels of a view. A view with less foreground counts as missing."""


def foreground_means(views: np.ndarray, masks: np.ndarray) -> list[np.ndarray | None]:
    """Return the mean Lab colour (3,) of the foreground of each view; None if it covers less than `MIN_FOREGROUND`.

    ``views`` are sRGB images (V, H, W, 3) in [0, 1], ``masks`` are bool (V, H, W), True for the foreground.
    """
    return [
        rgb2lab(view[mask][None])[0].mean(0) if mask.mean() >= MIN_FOREGROUND else None
        for view, mask in zip(views, masks, strict=True)
    ]


def colour_disagreement(means: Sequence[np.ndarray | None], missing: float) -> float:
    """Return the mean distance in Lab between the colours of two views of an object, over all pairs of views.

    ``means`` has the mean Lab colour (3,) of each view, or None for a missing view. For a pair with a missing view, the
    distance is ``missing``.
    """
    pairs = [missing if a is None or b is None else float(np.linalg.norm(a - b)) for a, b in combinations(means, 2)]
    return float(np.mean(pairs))


def mottle(views: np.ndarray, masks: np.ndarray, seed: int = 0) -> float | None:
    """Measure how patchy the colours of an object are. Return None if almost no foreground remains.

    The value is the mean distance from a foreground pixel to the nearest of `PALETTE` colours in the (a, b) plane of
    Lab. These colours are found by k-means over all views. Pixels at the outline are left out. ``views`` are sRGB
    images (V, H, W, 3) in [0, 1], ``masks`` are bool (V, H, W), True for the foreground.
    """
    inner = np.stack([binary_erosion(mask, iterations=max(1, views.shape[1] // 64)) for mask in masks])
    pixels = views[inner]
    if len(pixels) < PALETTE:
        return None
    rng = np.random.default_rng(seed)
    ab = rgb2lab(pixels[rng.integers(len(pixels), size=MOTTLE_PIXELS)][None])[0][:, 1:]
    best = np.inf
    for attempt in range(4):
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # fewer colours than the palette has
            warnings.simplefilter("ignore")
            palette, nearest = kmeans2(ab, PALETTE, minit="++", rng=np.random.default_rng([seed, attempt]))
        best = min(best, float(np.linalg.norm(ab - palette[nearest], axis=1).mean()))
    return best
