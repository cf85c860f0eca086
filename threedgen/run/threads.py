"""How many threads compute: torch's and numba's."""

from __future__ import annotations

import logging
from typing import Any

import numba
import torch

from threedgen.run.options import CrewConfig, cores

logger = logging.getLogger(__name__)


def set_threads(count: int | None) -> int:
    """Gives torch and numba `count` threads (None: one for each core this process may use); returns it.

    To be called before the first kernel: the number of threads decides the last bits of sums.
    """
    count = count or cores()
    available = int(vars(numba.config)["NUMBA_NUM_THREADS"])  # set by the library at import
    if count > available:
        logger.warning("numba has %d threads, not the %d asked for (NUMBA_NUM_THREADS)", available, count)
    numba.set_num_threads(min(count, available))  # begins its threads, which may change OpenMP's number, hence torch's
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    return count


def threads_of(config: Any) -> int | None:
    """Counts the CPU threads of a process of a run: those asked for, or its share beside those of the other devices."""
    threads: int | None = getattr(config, "threads", None)
    devices: Any = getattr(getattr(config, "trainer", None), "devices", "auto")
    if threads is not None or devices == "auto":
        return threads
    return max(1, cores() // devices)


def threads_each(config: CrewConfig) -> int | None:
    """Counts the CPU threads of a job: those that were asked for, or this worker's share of the machine."""
    if config.threads is not None or config.engine == "here":
        return config.threads
    return max(1, int(config.cpus) if config.engine == "ray" else cores() // config.workers)
