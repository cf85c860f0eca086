"""Photos of one subject, as a prior wants to see them: square, the subject in the middle, neutral grey around it.

    files = find(["photos/"])                 paths of pictures, each read once
    pictures = read(files, size=128)          (N, 128, 128, 3) uint8

What is subject is told by the picture's alpha channel; without one, by a background of one colour (a sheet of paper, a
wall), which is everything like the border and connected with it. A photo with neither keeps its background and is cut
to its middle square.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from threedgen.config.errors import ConfigError, short
from threedgen.geometry.foreground import WORKING_SIZE, in_front
from threedgen.geometry.picture_file import read_picture
from threedgen.run.arrays import Array

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FEWEST, MOST = 2, 100
GREY = 0.5


def find(paths: Sequence[str]) -> list[Path]:
    """The pictures that files and folders name, folders in the order of the names in them; each is read once, so that
    a damaged one is found before a prior is loaded.

    Raises ConfigError for no or too few pictures, too many, one that cannot be read or is far too large.
    """
    found: list[Path] = []
    for text in paths:
        try:
            path = Path(text).expanduser()
            found += sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
            path.stat()
        except (OSError, ValueError, RuntimeError):
            raise ConfigError(f"there is no file or folder {short(text)}", "photos") from None
    if not found:
        where = f" in {', '.join(map(short, paths))}" if paths else ""
        raise ConfigError(f"there is no picture{where}; give 4 to 6 photos of one subject, photos=FOLDER", "photos")
    if len(found) < FEWEST:
        raise ConfigError(
            "one picture cannot tell the subject from its surroundings; give 4 to 6 from different sides "
            f"(got {found[0]})",
            "photos",
        )
    if len(found) > MOST:
        raise ConfigError(f"should be at most {MOST} pictures of one subject (got {len(found)})", "photos")
    for path in found:
        _load(path)
    return found


def read(files: Sequence[Path], size: int, fill: float = 0.75) -> Array:
    """Pictures (N, size, size, 3) on neutral grey; a subject that was cut out fills the share ``fill`` of the side.

    Raises ConfigError, naming the file, for one that is damaged or shows nothing.
    """
    return np.stack([_portrait(_load(path), path, size, fill) for path in files])


def _load(path: Path) -> Image.Image:
    return read_picture(path, key="photos", most=WORKING_SIZE)


def _portrait(image: Image.Image, path: Path, size: int, fill: float) -> Array:
    """(size, size, 3), the subject in the middle."""
    rgb = np.asarray(image.convert("RGB"), np.float32) / 255
    opaque: Array = np.ones(rgb.shape[:2])
    if image.mode == "RGBA":
        opaque = np.asarray(image.getchannel("A"), np.float32) / 255
    if opaque.min() > 0.99:
        opaque = in_front(rgb)
    rows, columns = (np.flatnonzero((opaque > 0.5).any(axis)) for axis in (1, 0))
    if not len(rows):
        raise ConfigError(f"{path} shows nothing but its background", "photos")
    height, width = opaque.shape
    if opaque.min() > 0.99:  # no subject was cut out: the middle of the photo
        centre, side = (height / 2, width / 2), float(min(height, width))
    else:
        centre = float(rows[0] + rows[-1] + 1) / 2, float(columns[0] + columns[-1] + 1) / 2
        side = (1 + float(max(rows[-1] - rows[0], columns[-1] - columns[0]))) / fill
    layers = rgb * opaque[..., None] + GREY * (1 - opaque[..., None])
    top, left = centre[0] - side / 2, centre[1] - side / 2
    room = int(np.ceil(max(0, -top, -left, top + side - height, left + side - width)))
    padded = np.pad(layers, ((room, room), (room, room), (0, 0)), constant_values=GREY)
    box = (left + room, top + room, left + room + side, top + room + side)
    whole = Image.fromarray(np.round(padded * 255).clip(0, 255).astype(np.uint8))
    return np.asarray(whole.resize((size, size), Image.Resampling.LANCZOS, box=box))
