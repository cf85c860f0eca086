"""What of a picture is the thing that it shows: what is not transparent; of an opaque picture, what is in front of a
background of one colour (a sheet of paper, a wall), which is everything like the border and connected with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.run.arrays import Array

from .picture_file import read_picture

WORKING_SIZE = 1024
"""Pixels of the longer side at which backgrounds are found."""
TOLERANCE, SHARE = 0.08, 0.95
"""A background is of one colour if this share of the border is that close to the border's median, in each channel."""
SPECK = 1e-3
"""Smaller islands in front of a background, as a share of the picture, are dust."""
OPAQUE = 0.99
"""From here on nothing of a picture counts as transparent."""


def read_cut_out(path: str) -> Array:
    """The pixels (h,w,4) in [0,1] of a user's picture, and how opaque its thing is there. Raises ConfigError."""
    picture = read_picture(Path(path).expanduser(), key="image", most=WORKING_SIZE).convert("RGBA")
    return cut_out(np.asarray(picture, np.float32) / 255, path)


def cut_out(pixels: Array, name: str) -> Array:
    """The same of pixels (h,w,4) in [0,1]; ``name``: of the picture, for what is wrong with it. Raises ConfigError."""
    if pixels[..., 3].min() > OPAQUE:
        pixels = np.dstack([pixels[..., :3], in_front(pixels[..., :3])]).astype(np.float32)
        if pixels[..., 3].min() > OPAQUE:
            raise ConfigError(
                f"it cannot be told what in {name} is the thing and what is behind it; save it as PNG with a "
                "transparent background, or take a picture before a background of one colour",
                "image",
            )
    if not pixels[..., 3].any():
        raise ConfigError(f"{name} shows nothing but its background", "image")
    return pixels


def in_front(rgb: Array) -> Array:
    """What stands in front of a background of one colour, (H, W) of 0 and 1; all ones if there is no such one."""
    from skimage.measure import label

    edge = max(1, min(rgb.shape[:2]) // 50)
    border = np.ones(rgb.shape[:2], bool)
    border[edge:-edge, edge:-edge] = False
    colour = np.median(rgb[border], axis=0)
    like = np.abs(rgb - colour).max(-1) < TOLERANCE
    if like[border].mean() < SHARE:
        return np.ones(rgb.shape[:2])
    regions = label(like, connectivity=1)
    behind = np.isin(regions, np.setdiff1d(regions[border], [0]))
    islands = label(~behind, connectivity=1)
    large = np.bincount(islands.ravel()) >= SPECK * behind.size
    large[0] = False
    return large[islands].astype(np.float64)
