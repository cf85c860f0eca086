"""Contact sheet of rendered assets, with which users check their data before a long training."""

from pathlib import Path

import numpy as np
from PIL import Image

from threedgen.geometry.images import grid, write_png
from threedgen.run.arrays import Array

from .shards import Entry, Shards

SIDES, SIDE_PIXELS, COLUMNS, PER_PAGE = 4, 96, 3, 60
"""Views per asset, side of a view in pixels, assets per row, and assets per page."""


def write_sheet(folder: Path, shards: Shards, max_count: int) -> None:
    """Write contact sheets sheet.png, sheet-2.png, ... to `folder`. They show at most `max_count` assets, which are
    evenly spaced in the list of all assets. Raises OSError and ConfigError."""
    count = min(max_count, len(shards))
    subset = [shards.entries[k * len(shards) // count] for k in range(count)]
    for number, start in enumerate(range(0, count, PER_PAGE), 1):
        page = subset[start : start + PER_PAGE]
        labels = [" - ".join([entry.caption, entry.file, *entry.notes]) for entry in page]
        path = folder / ("sheet.png" if number == 1 else f"sheet-{number}.png")
        write_png(path, grid([sides(shards, entry) for entry in page], COLUMNS, labels))


def sides(shards: Shards, entry: Entry) -> Array:
    """Return the front, left, back and right views of the first ring side by side: (S, 4 S, 3) in [0, 1], S =
    `SIDE_PIXELS`."""
    views = (k * shards.azimuths // SIDES for k in range(SIDES))
    return np.concatenate([on_grey(shards.image(entry, view), SIDE_PIXELS) for view in views], axis=1)


def on_grey(image: Image.Image, size: int, grey: float = 0.5) -> Array:
    """Composite an image on grey of value `grey`, and resize its middle square. Return (size, size, 3) in [0, 1]."""
    pixels = np.asarray(image.convert("RGBA"), np.float32) / 255
    rgb = pixels[..., :3] * pixels[..., 3:] + grey * (1 - pixels[..., 3:])
    side = min(rgb.shape[:2])
    top, left = ((length - side) // 2 for length in rgb.shape[:2])
    return resize(rgb[top : top + side, left : left + side], size)


def resize(pixels: Array, size: int) -> Array:
    """Resize a square image (H, H, 3) to (size, size, 3), float32, in [0, 1], bicubic with antialiasing."""
    if pixels.shape[:2] == (size, size):
        return np.asarray(pixels, np.float32)
    bands = [Image.fromarray(np.ascontiguousarray(pixels[..., band], np.float32)) for band in range(3)]
    small = [np.asarray(band.resize((size, size), Image.Resampling.BICUBIC)) for band in bands]
    return np.clip(np.stack(small, -1), 0, 1)
