"""Foreground extraction by transparency or, in opaque images, by a uniform background at the image border."""

from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.run.arrays import Array

from .picture_file import load_image

WORKING_SIZE = 1024
"""Larger images are reduced to this number of pixels on the longer side before the background is searched."""
COLOUR_TOLERANCE, MIN_BORDER_FRACTION = 0.08, 0.95
"""A background is uniform if this fraction of border pixels is within the tolerance of their median colour."""
MIN_ISLAND_FRACTION = 1e-3
"""Smallest size of a foreground region, as a fraction of the image. Smaller regions are removed as dust."""
MIN_OPAQUE_ALPHA = 0.99
"""Alpha above which a pixel counts as opaque."""


def read_foreground(path: str) -> Array:
    """Read an image and return RGBA (H, W, 4) float in [0, 1] with the foreground in alpha. Raises ConfigError."""
    image = load_image(Path(path).expanduser(), key="image", max_side=WORKING_SIZE).convert("RGBA")
    return extract_foreground(np.asarray(image, np.float32) / 255, path)


def extract_foreground(pixels: Array, name: str) -> Array:
    """Return RGBA (H, W, 4) in [0, 1] with the foreground in alpha, for RGBA ``pixels`` (H, W, 4) in [0, 1].

    Existing transparency is kept. Raises ConfigError with the image's ``name`` if the foreground cannot be found or is
    empty.
    """
    if pixels[..., 3].min() > MIN_OPAQUE_ALPHA:
        pixels = np.dstack([pixels[..., :3], foreground_mask(pixels[..., :3])]).astype(np.float32)
        if pixels[..., 3].min() > MIN_OPAQUE_ALPHA:
            raise ConfigError(
                f"{name} has no transparent or uniform background. Save it as PNG with transparency, or use a photo "
                "with a background of one colour.",
                "image",
            )
    if not pixels[..., 3].any():
        raise ConfigError(f"{name} shows only background. Use an image with an object.", "image")
    return pixels


def foreground_mask(rgb: Array) -> Array:
    """Return a foreground mask (H, W) of 0 and 1 for an image (H, W, 3) in [0, 1]; 1 without a uniform background."""
    from skimage.measure import label

    edge = max(1, min(rgb.shape[:2]) // 50)
    border = np.ones(rgb.shape[:2], bool)
    border[edge:-edge, edge:-edge] = False
    colour = np.median(rgb[border], axis=0)
    similar = np.abs(rgb - colour).max(-1) < COLOUR_TOLERANCE
    if similar[border].mean() < MIN_BORDER_FRACTION:
        return np.ones(rgb.shape[:2])
    regions = label(similar, connectivity=1)
    background = np.isin(regions, np.setdiff1d(regions[border], [0]))
    islands = label(~background, connectivity=1)
    large = np.bincount(islands.ravel()) >= MIN_ISLAND_FRACTION * background.size
    large[0] = False
    return large[islands].astype(np.float64)
