"""Arrays that are made once and read from the disk from then on: a cache, whose loss costs nothing but time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Array = NDArray[Any]

SPARE = 100 << 20
"""Bytes of disk left to others: a write through a memory map to a full disk would kill the process (SIGBUS)."""


class BlockCache:
    """``count`` arrays of one shape and type, which come in blocks of ``size``.

    Files: ``folder``/NAME.npy, done.npy (which blocks are in it) and source.txt (``told``: what decides the numbers);
    if one does not fit, all are made anew. While the disk is full, new blocks are kept in memory.
    """

    def __init__(
        self, folder: Path, name: str, count: int, shape: tuple[int, ...], dtype: type, told: str, size: int = 1
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size, self.dtype = folder, size, dtype
        self.in_memory: dict[int, Array] = {}
        blocks = -(-count // size)
        source, whole = folder / "source.txt", (blocks * size, *shape)
        array = _existing(folder / f"{name}.npy", whole, dtype)
        done = _existing(folder / "done.npy", (blocks,), np.uint8)
        if array is None or done is None or _text(source) != told:
            source.unlink(missing_ok=True)  # until the files are whole
            array = _new(folder / f"{name}.npy", whole, dtype)
            done = _new(folder / "done.npy", (blocks,), np.uint8)
            source.write_text(told, encoding="utf-8")
        self.array, self.done = array, done

    def lacking(self, indices: Iterable[int]) -> list[int]:
        """The blocks of these arrays that have to be made first."""
        blocks = sorted({int(i) // self.size for i in indices})
        return [block for block in blocks if not self.done[block] and block not in self.in_memory]

    def __getitem__(self, index: int) -> Array:
        block, place = divmod(int(index), self.size)
        kept: Array = self.in_memory[block][place] if block in self.in_memory else self.array[int(index)]
        return kept

    def store(self, block: int, values: Array) -> None:
        """All arrays of a block (size, ...)."""
        if shutil.disk_usage(self.folder).free < SPARE:
            if not self.in_memory:
                logger.warning("%s: the disk is full; new scenes are kept in memory only", self.folder)
            self.in_memory[block] = values.astype(self.dtype)
            return
        self.array[block * self.size : (block + 1) * self.size] = values
        if isinstance(self.array, np.memmap):
            self.array.flush()  # before it is said to be there
        self.done[block] = 1


def _existing(path: Path, shape: tuple[int, ...], dtype: type) -> Array | None:
    """A memory-mapped array, or None if the file is missing, of another form or not readable."""
    try:
        array = np.load(path, mmap_mode="r+")
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(array, np.ndarray) and array.shape == shape and array.dtype == dtype
    return array if fits else None


def _new(path: Path, shape: tuple[int, ...], dtype: type) -> Array:
    """A memory-mapped array of zeros in a file of its own, whatever was there."""
    path.unlink(missing_ok=True)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def _text(path: Path) -> str:
    """The text of a file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
