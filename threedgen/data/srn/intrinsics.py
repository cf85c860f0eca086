"""Reader for the two file formats of a scene's camera intrinsics, both in pixels.

1. `intrinsics.txt` of the archives has the lines "f cx cy 0.", "0. 0. 0.", "1.", "height width", and optionally a fifth
   line with a flag. The flag 1 states that the poses are world-to-camera.
2. A 3x3 or 4x4 matrix, in `intrinsics.txt` for all views or in `intrinsics/NAME.txt` for one view, without image size.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import read_text
from threedgen.run.arrays import Array

FORMS = "should hold 'f cx cy 0', '0 0 0', '1', 'height width' in four lines, or a 3x3 matrix"
LARGEST = 1 << 16
"""Largest accepted size of an intrinsics or pose file, bytes."""
MAX_OFFSET = 0.2
"""Largest accepted distance of the principal point from the image centre, as a fraction of the image side. It applies
to intrinsics in matrix form."""


def read_numbers(path: Path) -> list[list[float]]:
    """Read the numbers in each non-empty line of a text file. Raises ConfigError if a word is not a finite number."""
    text = read_text(path, max_bytes=LARGEST)
    try:
        rows = [[float(word) for word in line.split()] for line in text.splitlines() if line.strip()]
    except ValueError:
        raise ConfigError(f"{path} should hold numbers (got {short(text, 40)})") from None
    if not all(np.isfinite(row).all() for row in rows):
        raise ConfigError(f"{path} should hold finite numbers (got {short(text, 40)})")
    return rows


def read_intrinsics(folder: Path, names: Sequence[str], height: int, width: int) -> tuple[Array, bool]:
    """Read the intrinsics of the views `names`, which are file names without suffix, in the scene `folder`.

    Raises ConfigError for an unusable file, and if K does not fit images of `height` x `width` pixels.

    Returns:
        K (N, 3, 3) in pixels, and whether the pose files are world-to-camera instead of camera-to-world.
    """
    path, per_view = folder / "intrinsics.txt", folder / "intrinsics"
    if path.is_file() or not per_view.is_dir():
        K, inverse = _parse(path, read_numbers(path), height, width)
        return np.repeat(K[None], len(names), axis=0), inverse
    files = [per_view / f"{name}.txt" for name in names]
    return np.stack([_parse(file, read_numbers(file), height, width)[0] for file in files]), False


def _parse(path: Path, rows: list[list[float]], height: int, width: int) -> tuple[Array, bool]:
    count = sum(map(len, rows))
    if [len(row) for row in rows[:4]] == [4, 3, 1, 2] and count in (10, 11):
        return _archive(path, rows, height, width)
    if count in (9, 16):
        side = int(count**0.5)
        return _matrix(path, np.array([x for row in rows for x in row]).reshape(side, side)[:3, :3], height, width)
    raise ConfigError(f"{path} {FORMS} (got {count} numbers in {len(rows)} lines)")


def _archive(path: Path, rows: list[list[float]], height: int, width: int) -> tuple[Array, bool]:
    f, cx, cy, _ = rows[0]
    if [int(side) for side in rows[3]] != [height, width]:
        size = " x ".join(f"{side:g}" for side in rows[3])
        raise ConfigError(f"{path} states the image size {size} (height x width); the images have {height} x {width}")
    if f <= 0 or not (0 < cx < width and 0 < cy < height):
        raise ConfigError(
            f"{path} has an invalid focal length {f:g} or principal point ({cx:g}, {cy:g}) for images of {height} x "
            f"{width} pixels (height x width)"
        )
    return np.array([[f, 0, cx], [0, f, cy], [0, 0, 1]]), len(rows) > 4 and bool(rows[4][0])


def _matrix(path: Path, K: Array, height: int, width: int) -> tuple[Array, bool]:
    valid = K[0, 0] > 0 and K[1, 1] > 0 and abs(K[1, 0]) < 1e-6 and np.allclose(K[2], [0, 0, 1], atol=1e-6)
    if not valid:
        raise ConfigError(f"{path} is no matrix of intrinsics: rows 'fx s cx', '0 fy cy', '0 0 1' (got {K.tolist()})")
    if abs(K[0, 2] / width - 0.5) > MAX_OFFSET or abs(K[1, 2] / height - 0.5) > MAX_OFFSET:
        raise ConfigError(
            f"{path} seems to be for another image size: its principal point ({K[0, 2]:g}, {K[1, 2]:g}) is far "
            f"from the centre of {height} x {width} pixels (height x width)"
        )
    return K, False
