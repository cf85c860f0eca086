"""What is made once and read from the disk from then on; its loss costs nothing but time.

    BlockCache   an array that grows block by block
    kept         one tensor
    keep, fill   the weights of a network

A cache of what a network made has the network's `digest` in its source.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.run.arrays import Array
from threedgen.run.disk import write_atomic, writing
from threedgen.run.torch_file import compare, read_safetensors, require_finite

logger = logging.getLogger(__name__)

SPARE = 100 << 20
"""Bytes of disk left to others: a write through a memory map to a full disk would kill the process (SIGBUS)."""


class BlockCache:
    """``count`` arrays of one shape and type, which come in blocks of ``size``.

    Files: ``folder``/NAME.npy, done.npy (which blocks are in it) and source.txt (``told``: what decides the numbers);
    if one does not fit, all are made anew. While the disk is full, new blocks are kept in memory.
    """

    def __init__(
        self, folder: Path, name: str, count: int, shape: tuple[int, ...], dtype: Any, told: str, size: int = 1
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.size, self.dtype = folder, size, dtype
        self.in_memory: dict[int, Array] = {}
        blocks = -(-count // size)
        source, whole = folder / "source.txt", (blocks * size, *shape)
        array = _existing(folder / f"{name}.npy", whole, dtype)
        done = _existing(folder / "done.npy", (blocks,), np.uint8)
        if array is None or done is None or not source.is_file() or source.read_bytes() != told.encode():
            source.unlink(missing_ok=True)  # until the files are whole
            array = _new(folder / f"{name}.npy", whole, dtype)
            done = _new(folder / "done.npy", (blocks,), np.uint8)
            source.write_bytes(told.encode())
        self.array, self.done = array, done

    def lacking(self, indices: Iterable[int]) -> list[int]:
        """Lists the blocks of the arrays at `indices` that have to be made first."""
        blocks = sorted({int(i) // self.size for i in indices})
        return [block for block in blocks if not self.done[block] and block not in self.in_memory]

    def __getitem__(self, index: int) -> Array:
        block, place = divmod(int(index), self.size)
        kept: Array = self.in_memory[block][place] if block in self.in_memory else self.array[int(index)]
        return kept

    def store(self, block: int, values: Array) -> None:
        """Keeps all arrays of a block, (size, ...)."""
        if shutil.disk_usage(self.folder).free < SPARE:
            if not self.in_memory:
                logger.warning("%s: the disk is full; new scenes are kept in memory only", self.folder)
            self.in_memory[block] = values.astype(self.dtype)
            return
        self.array[block * self.size : (block + 1) * self.size] = values
        if isinstance(self.array, np.memmap):
            self.array.flush()  # before it is said to be there
        self.done[block] = 1


def _existing(path: Path, shape: tuple[int, ...], dtype: Any) -> Array | None:
    """Opens a memory-mapped array; None if the file is missing, of another form or not readable."""
    try:
        array = np.load(path, mmap_mode="r+")
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(array, np.ndarray) and array.shape == shape and array.dtype == dtype
    return array if fits else None


def _new(path: Path, shape: tuple[int, ...], dtype: Any) -> Array:
    """Makes a memory-mapped array of zeros in a file of its own, whatever was there."""
    path.unlink(missing_ok=True)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


# --- tensors that a resumed run must find as they were ----------------------------------------------------------


def kept(path: Path, name: str, shape: tuple[int | None, ...], make: Callable[[], Tensor]) -> Tensor:
    """Reads the tensor `name` of a safetensors file; if it is not there yet, writes what `make` gives, float32.

    A file that is damaged, or holds another shape (None: any) or NaN, is made again. Raises ConfigError for a
    full disk.
    """
    found = None
    with suppress(ConfigError):
        found = read_safetensors(path).get(name)
    if found is not None and found.dtype == torch.float32 and len(found.shape) == len(shape):
        fits = all(size in (None, actual) for size, actual in zip(shape, found.shape, strict=True))
        if fits and bool(torch.isfinite(found).all()):
            return found
    if path.exists():
        logger.warning("%s is damaged and was made again", path)
    value = make().detach().float().cpu().contiguous()
    with writing(path.parent):
        write_atomic(path, save({name: value}))
    return value


# --- networks ---------------------------------------------------------------------------------------------------


def keep(path: Path, network: torch.nn.Module) -> None:
    """Writes the weights of a network. Raises ConfigError for a full disk."""
    with writing(path.parent):
        write_atomic(path, save({name: value.contiguous() for name, value in network.state_dict().items()}))


def fill(network: torch.nn.Module, path: Path) -> bool:
    """Loads what `keep` wrote; False if there is no such file, or it is damaged."""
    if not path.exists():
        return False
    try:
        stored = read_safetensors(path)
        compare(stored, network.state_dict(), str(path))
        require_finite(stored, f"the weights in {path}")
    except ConfigError as error:
        logger.warning("%s; it is made again", error)
        return False
    network.load_state_dict(stored)
    return True


def digest(network: torch.nn.Module | Mapping[str, torch.nn.Module]) -> str:
    """Hashes the weights of a network, or of several by their names, to 32 hex digits: as float32, so that device and
    type do not matter."""
    whole = network if isinstance(network, torch.nn.Module) else torch.nn.ModuleDict(network)
    weights = hashlib.blake2b(digest_size=16)
    for _, tensor in sorted(whole.state_dict().items()):
        weights.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return weights.hexdigest()
