"""Pictures of the six sides of a thing that are given: a folder with a file for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from threedgen.config import ConfigError
from threedgen.config.errors import nearest
from threedgen.geometry.picture_file import FORMATS, load_image
from threedgen.run.arrays import Array

from .mesh import SIDES

ENDINGS = (".jpg", *(f".{kind.lower()}" for kind in FORMATS))


def read_sides(folder: Path) -> tuple[Array, Array]:
    """Pictures (6,H,H,3) in [0,1] in the order of SIDES, and where they show the thing (6,H,H). Raises ConfigError."""
    pictures = [np.asarray(load_image(_find(folder, side), key="views").convert("RGBA")) for side in SIDES]
    sizes = {picture.shape[:2] for picture in pictures}
    height, width = pictures[0].shape[:2]
    if len(sizes) > 1 or height != width:
        told = ", ".join(f"{side} {p.shape[1]} x {p.shape[0]}" for side, p in zip(SIDES, pictures, strict=True))
        raise ConfigError(f"the pictures of {folder} should be square and of one size, and are: {told}", "views")
    stack = np.stack(pictures).astype(np.float32) / 255
    if not stack[..., 3].any():
        raise ConfigError(f"the pictures of {folder} are all transparent", "views")
    return stack[..., :3], stack[..., 3]


def _find(folder: Path, side: str) -> Path:
    there = {path.name.lower(): path for path in folder.iterdir() if path.suffix.lower() in ENDINGS}
    for ending in ENDINGS:
        if side + ending in there:
            return there[side + ending]
    guess = nearest(f"{side}.png", list(there))
    hint = f" (is it {guess}?)" if guess else ""
    raise ConfigError(f"{folder} has no {side}.png{hint}; the sides are {', '.join(SIDES)}", "views")
