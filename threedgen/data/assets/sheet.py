"""The contact sheet of what was read, to be looked at before hours are spent on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from threedgen.geometry.images import grid, write_png
from threedgen.run.arrays import Array

from .shards import Entry, Shards

SIDES, SMALL, COLUMNS, PAGE = 4, 96, 3, 60
"""Views of an asset, their pixels, assets in a row and on a page."""


def write_sheet(folder: Path, shards: Shards, most: int) -> None:
    """sheet.png, sheet-2.png, ...: assets spread over all of them, at most so many. Raises OSError, ConfigError."""
    count = min(most, len(shards))
    chosen = [shards.entries[k * len(shards) // count] for k in range(count)]
    for number, start in enumerate(range(0, count, PAGE), 1):
        page = chosen[start : start + PAGE]
        labels = [" - ".join([entry.caption, entry.file, *entry.notes]) for entry in page]
        path = folder / ("sheet.png" if number == 1 else f"sheet-{number}.png")
        write_png(path, grid([sides(shards, entry) for entry in page], COLUMNS, labels))


def sides(shards: Shards, entry: Entry) -> Array:
    """Front, left, back and right of the first ring in a row, (SMALL, SIDES * SMALL, 3) in [0, 1]."""
    views = (k * shards.azimuths // SIDES for k in range(SIDES))
    return np.concatenate([on_grey(shards.picture(entry, view), SMALL) for view in views], axis=1)


def on_grey(picture: Image.Image, size: int, grey: float = 0.5) -> Array:
    """The middle square of a picture, (size, size, 3) in [0, 1], on grey where it shows nothing."""
    pixels = np.asarray(picture.convert("RGBA"), np.float32) / 255
    laid = pixels[..., :3] * pixels[..., 3:] + grey * (1 - pixels[..., 3:])
    side = min(laid.shape[:2])
    top, left = ((length - side) // 2 for length in laid.shape[:2])
    return resized(laid[top : top + side, left : left + side], size)


def resized(pixels: Array, size: int) -> Array:
    """Pixels (H, W, 3) of another size, (size, size, 3), smoothed where it is smaller; float32 in [0, 1]."""
    if pixels.shape[:2] == (size, size):
        return np.asarray(pixels, np.float32)
    bands = [Image.fromarray(np.ascontiguousarray(pixels[..., band], np.float32)) for band in range(3)]
    small = [np.asarray(band.resize((size, size), Image.Resampling.BICUBIC)) for band in bands]
    return np.clip(np.stack(small, -1), 0, 1)
