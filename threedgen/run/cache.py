"""Disk caches of arrays, tensors and network weights. The content of a missing or damaged cache is computed again."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import DTypeLike
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from threedgen.config.errors import ConfigError, DiskFull, FileError
from threedgen.run.arrays import Array
from threedgen.run.disk import make_folder, write_atomic, writing
from threedgen.run.torch_file import check_architecture, read_safetensors, require_finite

logger = logging.getLogger(__name__)

SPARE = 100 << 20  # bytes of disk to leave free, as a memory-mapped write to a full disk would kill the process


class BlockCache:
    """Disk cache of an array (count, *shape) in a memory-mapped file, which the caller fills in blocks of `size` rows.

    A row is one of the `count` entries along the first axis. `store` writes block k, the rows from k * size on. After
    that, `cache[i]` returns a row of this block by its index i in the whole array. `source` is the cache key: a text
    that names all that the values depend on. `folder` has the files `name`.npy, done.npy (1 for each stored block) and
    source.txt (the text). If one of them is missing or has another shape, dtype or text, the cache starts empty.
    """

    def __init__(
        self, folder: Path, name: str, count: int, shape: tuple[int, ...], dtype: DTypeLike, source: str, size: int = 1
    ) -> None:
        make_folder(folder)
        self.folder, self.size, self.dtype = folder, size, dtype
        blocks = -(-count // size)
        source_file, full_shape = folder / "source.txt", (blocks * size, *shape)
        array = _existing(folder / f"{name}.npy", full_shape, dtype)
        done = _existing(folder / "done.npy", (blocks,), np.uint8)
        if array is None or done is None or not source_file.is_file() or source_file.read_bytes() != source.encode():
            source_file.unlink(missing_ok=True)  # until the files are complete
            array = _new(folder / f"{name}.npy", full_shape, dtype)
            done = _new(folder / "done.npy", (blocks,), np.uint8)
            write_atomic(source_file, source.encode())
        self.array, self.done = array, done

    def missing_blocks(self, indices: Iterable[int]) -> list[int]:
        """Return the sorted indices of the blocks that must still be stored before the rows `indices` can be read."""
        return [block for block in sorted({int(i) // self.size for i in indices}) if not self.done[block]]

    def __getitem__(self, index: int) -> Array:
        return self.array[int(index)]

    def store(self, block: int, values: Array) -> None:
        """Write the block with the index `block`, and mark it as stored.

        `values` (size, *shape) are the rows of the block. `size`, the number of rows per block, and `shape`, the shape
        of a row, are those of the constructor. The last block has `size` rows too: pad it if the array's length is no
        multiple of `size`. Raises DiskFull if less than 100 MiB of disk space are free.
        """
        if shutil.disk_usage(self.folder).free < SPARE:
            raise DiskFull(f"{self.folder} has no room. Make room there and run the same command again")
        self.array[block * self.size : (block + 1) * self.size] = values
        if isinstance(self.array, np.memmap):
            self.array.flush()  # before the block is marked as done
        self.done[block] = 1


def _existing(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Array | None:
    try:
        array = np.load(path, mmap_mode="r+")
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(array, np.ndarray) and array.shape == shape and array.dtype == dtype
    return array if fits else None


def _new(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    path.unlink(missing_ok=True)
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)


def input_digest(tensors: Iterable[Tensor], *values: object) -> str:
    """Return a hash (BLAKE2b, 32 hex digits) of the inputs of a computation: CPU tensors, and values with a `repr`."""
    blake = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        blake.update(tensor.contiguous().numpy().tobytes())
    blake.update(repr(values).encode())
    return blake.hexdigest()


def cached_tensor(
    path: Path, name: str, shape: tuple[int | None, ...], make: Callable[[], Tensor], inputs: str = ""
) -> Tensor:
    """Return the float32 tensor `name` of the safetensors file `path`. If reading fails, `make` computes the tensor.

    Reading fails if the file is missing or damaged, if its tensor was computed from other inputs, or if the tensor is
    not finite, not float32 or not of the shape `shape`, in which None allows any size. `inputs` is a hash of all that
    the tensor depends on apart from the config (`input_digest`); "": nothing. The computed tensor is converted to
    float32 on the CPU and written to the file. Raises DiskFull or FileError if writing fails.
    """
    tensor = None
    with suppress(FileError):
        tensor = read_safetensors(path).get(name)
        with safe_open(path, "pt") as file:
            tensor = tensor if (file.metadata() or {}).get("inputs", "") == inputs else None
    if tensor is not None and tensor.dtype == torch.float32 and len(tensor.shape) == len(shape):
        fits = all(size in (None, actual) for size, actual in zip(shape, tensor.shape, strict=True))
        if fits and bool(torch.isfinite(tensor).all()):
            return tensor
    if path.exists():
        logger.warning("%s is damaged or of other inputs, and is computed again", path)
    value = make().detach().float().cpu().contiguous()
    with writing(path.parent):
        write_atomic(path, save({name: value}, {"inputs": inputs} if inputs else None))
    return value


def save_network(path: Path, network: torch.nn.Module) -> None:
    """Write the state_dict of a network to a safetensors file. Raises DiskFull or FileError if this fails."""
    with writing(path.parent):
        write_atomic(path, save({name: value.contiguous() for name, value in network.state_dict().items()}))


def load_network(network: torch.nn.Module, path: Path) -> bool:
    """Load weights into a network from a file that `save_network` wrote. Return True if they were loaded.

    Returns False, and leaves the network unchanged, if the file is missing or damaged, or if the weights are not
    finite or belong to another architecture.
    """
    if not path.exists():
        return False
    try:
        stored = read_safetensors(path)
        check_architecture(stored, network.state_dict(), str(path))
        require_finite(stored, f"the weights in {path}")
    except ConfigError as error:
        logger.warning("%s; it is computed again", error)
        return False
    network.load_state_dict(stored)
    return True


def digest(network: torch.nn.Module | Mapping[str, torch.nn.Module]) -> str:
    """Return a hash (BLAKE2b, 32 hex digits) of the weights of a network, or of all networks in a dict.

    All tensors of the state_dict are converted to float32 before they are hashed.
    """
    module = network if isinstance(network, torch.nn.Module) else torch.nn.ModuleDict(network)
    blake = hashlib.blake2b(digest_size=16)
    for _, tensor in sorted(module.state_dict().items()):
        blake.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return blake.hexdigest()
