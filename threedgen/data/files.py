"""Small files of data sets: lines of text, numbered lists, arrays; a mistake is one sentence with the file's name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import read_bytes, read_text
from threedgen.run.arrays import Array


def read_lines(path: Path) -> list[str]:
    """The lines of a text that are not empty, without the spaces around them. Raises ConfigError."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def first_line(path: Path) -> str:
    """A caption. Raises ConfigError, also for a file without one."""
    lines = read_lines(path)
    if not lines:
        raise ConfigError(f"{path} should begin with a caption, and is empty")
    return lines[0]


def read_frame_numbers(path: Path) -> list[int]:
    """One number in a line, ascending, each once. Raises ConfigError."""
    lines = read_lines(path)
    for line in lines:
        if not line.isdecimal():
            raise ConfigError(f"{path} should hold the number of a frame in each line (got {short(line, 40)})")
    return sorted({int(line) for line in lines})


def read_npy(path: Path) -> Array:
    """An array of numbers or texts. Raises ConfigError, also for pickled objects, which could run any program."""
    try:
        array: Array = np.lib.format.read_array(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing") from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise ConfigError(f"{path} is no array of numpy (.npy), or is cut off") from None
        raise ConfigError(
            f"{path} holds pickled objects, which could run any program, and is not read: save it as an array of texts "
            "or numbers"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error})") from None
    return array
