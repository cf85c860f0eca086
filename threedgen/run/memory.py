"""How much memory there is, and how much of it a graph would hold."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import WeakSet

import torch
from torch import Tensor

from threedgen.config.errors import ConfigError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
UNKNOWN = 4 << 30
"""Assumed where a system does not say."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h."""
LARGEST_KEPT, MOST_KEPT = 256 << 20, 512 << 20
"""Bytes of one block, and of all free ones at the top of the heap."""


def free_bytes(device: torch.device) -> int:
    """Bytes that this process could still take on a device.

    On a GPU what the driver has, and what torch keeps for reuse; on a CPU what is available without swapping, within
    the limit of a container (cgroup v2).
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    container = _container()
    return _available() if container is None else min(_available(), container)


def keep_freed_memory() -> None:
    """Lets this process take tensors on the CPU from what it freed before (glibc; elsewhere nothing happens).

    By default blocks above 32 MB come fresh from the system each time, and writing to pages for the first time costs
    as much as a product of matrices. Takes up to ``MOST_KEPT`` more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def require_memory(size: int, what: str) -> None:
    """Raises ConfigError if `size` bytes are more than this process can still take."""
    free = free_bytes(torch.device("cpu"))
    if size > free:
        raise ConfigError(f"{what} takes {size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free")


@contextmanager
def enough_memory(doing: str, remedy: str) -> Iterator[None]:
    """Turns the OutOfMemoryError of a GPU inside into a ConfigError: what was done, and what to set."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ConfigError(f"{doing} takes more memory than the GPU has free: {remedy}") from None


def _available() -> int:
    """Finds what the machine has: Linux's own estimate, elsewhere half of the memory that is built in."""
    with suppress(OSError, ValueError, StopIteration):
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return UNKNOWN


def _container() -> int | None:
    """Finds what is left of a container's limit; None without one. Cached files can be dropped, so do not count."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, int(limit) - used + int(statistics.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None


class _Kept:
    """A tensor that a graph refers to, for as long as there is the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # a result would hold the graph that holds it


def graph_bytes(make: Callable[[], object]) -> int:
    """Bytes of what autograd keeps for the graph behind `make()`'s result, each storage counted once.

    Parameters that the graph refers to are counted too; the difference between two sizes is free of them.
    """
    alive: WeakSet[_Kept] = WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        made = make()  # its name holds the graph
        storages = {kept.tensor.untyped_storage()._cdata: kept.tensor.untyped_storage().nbytes() for kept in alive}
        del made
    return sum(storages.values())
