"""Depth images as 16-bit PNG files: millimetres along the viewing axis, where 0 means unknown."""

from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.run.arrays import Array
from threedgen.run.disk import write_atomic

from .images import png
from .picture_file import open_image

MILLIMETRE = 1e-3
MAX_DEPTH = 65.535
"""Largest depth in metres that 16 bits can store."""


def write_depth(path: Path, depth: Array) -> None:
    """Write depth (H, W) in metres. Values above ``MAX_DEPTH`` become unknown. Creates the folder. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png(np.round(np.where(depth <= MAX_DEPTH, depth, 0) / MILLIMETRE).astype(np.uint16)))


def read_depth(path: Path, key: str = "") -> Array:
    """Read depth (H, W), float32 in metres, 0 = unknown. Raises ConfigError with ``key`` for an unsuitable file."""
    if not path.is_file():
        raise ConfigError(f"{path} is missing", key)
    with open_image(path, key=key) as image:
        try:
            image.load()
            millimetres = np.asarray(image)
        except Exception:  # PIL raises many types for damaged files
            raise ConfigError(f"{path} is damaged or incomplete", key) from None
    if millimetres.ndim != 2 or millimetres.dtype.itemsize < 2:
        actual = f"{millimetres.dtype} {millimetres.shape}"
        raise ConfigError(f"{path} is not a depth image: {actual}. Use a 16-bit one-channel PNG in millimetres.", key)
    return millimetres.astype(np.float32) * np.float32(MILLIMETRE)
