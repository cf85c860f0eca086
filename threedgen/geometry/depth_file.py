"""Depth in a file: a PNG of 16 bits with millimetres along the viewing axis, 0 where it is unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.run.arrays import Array
from threedgen.run.disk import write_atomic

from .images import png
from .picture_file import open_picture

MILLIMETRE = 1e-3
FARTHEST = 65.535
"""Metres that a file can hold."""


def write_depth(path: Path, depth: Array) -> None:
    """Writes metres (H,W), those beyond ``FARTHEST`` as unknown, and the folder if need be. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png(np.round(np.where(depth <= FARTHEST, depth, 0) / MILLIMETRE).astype(np.uint16)))


def read_depth(path: Path, key: str = "") -> Array:
    """Reads metres (H,W), float32. Raises ConfigError, naming ``key``, also for a picture of another kind."""
    if not path.is_file():
        raise ConfigError(f"{path} is missing", key)
    with open_picture(path, key=key) as image:
        try:
            image.load()
            millimetres = np.asarray(image)
        except Exception:  # of a damaged file, a dozen kinds
            raise ConfigError(f"{path} is damaged or cut off", key) from None
    if millimetres.ndim != 2 or millimetres.dtype.itemsize < 2:
        got = f"{millimetres.dtype} {millimetres.shape}"
        raise ConfigError(f"{path} should hold depth in millimetres, 16 bits and one channel (got {got})", key)
    return millimetres.astype(np.float32) * np.float32(MILLIMETRE)
