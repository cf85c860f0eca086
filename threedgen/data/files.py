"""Readers for small data set files: text lines, frame numbers and arrays. Error messages name the file."""

import hashlib
import io
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import MAX_BYTES, read_bytes, read_text
from threedgen.run.arrays import Array

logger = logging.getLogger(__name__)

MIN_FOCAL = 1e-3
"""Minimum focal length in camera files, as a fraction of the longer image side: a field of view of 179.9 degrees."""


def is_finite(numbers: ArrayLike) -> bool:
    """Return whether all numbers are finite after conversion to float32, the dtype of cameras."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.asarray(numbers, np.float64).astype(np.float32)).all())


def files_hash(paths: Iterable[Path]) -> str:
    """Return a hash of the names, sizes and times of files, for cache keys: it differs if a file was changed.

    Names include two parent folders. The contents are not read. Missing files are skipped.
    """
    lines = []
    for path in paths:
        with suppress(OSError):
            stat = path.stat()
            lines.append(f"{'/'.join(path.parts[-3:])} {stat.st_size} {stat.st_mtime_ns}\n")
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def warn_left_out(problems: Sequence[str], kept: int, what: str) -> None:
    """Log one warning about the unusable `what`, such as "scenes", of a data set, with the first of the problems.

    `kept` is the number of usable ones. Raises ConfigError if it is 0.
    """
    if problems and not kept:
        raise ConfigError(problems[0])
    if problems:
        logger.warning("%d of %d %s are left out: %s", len(problems), len(problems) + kept, what, problems[0])


def read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a text file, stripped of spaces. Raises ConfigError if it cannot be read."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def first_line(path: Path) -> str:
    """Return the caption in a text file: its first non-empty line. Raises ConfigError if there is no such line."""
    lines = read_lines(path)
    if not lines:
        raise ConfigError(f"{path} is empty; its first line should be a caption")
    return lines[0]


def read_frame_numbers(path: Path) -> list[int]:
    """Read a text file with one frame number per line. Return the distinct numbers, ascending.

    Raises ConfigError if the file is unreadable or a line is not a number.
    """
    lines = read_lines(path)
    for line in lines:
        if not line.isdecimal():
            raise ConfigError(f"{path} should hold one frame number per line (got {short(line, 40)})")
    return sorted({int(line) for line in lines})


def read_numbers(path: Path) -> list[list[float]]:
    """Read a text file of numbers separated by white space. Return one list per non-empty line.

    Raises ConfigError if the file is unreadable or contains anything but numbers that are finite in float32.
    """
    text = read_text(path, max_bytes=1 << 16)
    try:
        rows = [[float(word) for word in line.split()] for line in text.splitlines() if line.strip()]
    except ValueError:
        raise ConfigError(f"{path} should hold numbers (got {short(text, 40)})") from None
    if not all(map(is_finite, rows)):
        raise ConfigError(f"{path} should hold finite numbers (got {short(text, 40)})")
    return rows


def read_npy(path: Path) -> Array:
    """Read an array of numbers or strings from a .npy file.

    Raises ConfigError if the file is missing or damaged, or has pickled objects, because unpickling can run code.
    """
    try:
        array: Array = np.lib.format.read_array(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except (ValueError, MemoryError, OverflowError, RecursionError) as error:  # also of shapes of any size
        if "allow_pickle" not in str(error):
            raise ConfigError(f"{path} is not a NumPy array (.npy), or is truncated") from None
        raise ConfigError(f"{path} holds pickled objects, which could run code. Save it as a plain array") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error})") from None
    if array.size > MAX_BYTES:  # without a byte per value
        raise ConfigError(f"{path} is not an array of numbers or texts: its values have no size")
    return array
