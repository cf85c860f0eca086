"""Number of CPU threads of torch and Numba."""

import logging
from typing import Any

import numba
import torch

from threedgen.run.options import WorkersConfig, cores

logger = logging.getLogger(__name__)


def set_threads(count: int | None) -> int:
    """Set the number of CPU threads of torch and Numba to `count`, and return it. None: one thread per available core.

    Call this function before the first computation: the last bits of sums depend on the number of threads.
    """
    asked, count = count is not None, count or cores()
    available = int(vars(numba.config)["NUMBA_NUM_THREADS"])  # set by the library at import
    if asked and count > available:
        logger.warning("Numba uses %d threads instead of %d because of NUMBA_NUM_THREADS", available, count)
    numba.set_num_threads(min(count, available))  # starts its threads, which may change OpenMP's and torch's number
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
    return count


def threads_of(config: Any) -> int | None:
    """Return the number of CPU threads for one process of a run; None: one thread per core.

    The number is the option `threads` if set. Otherwise it depends on the option `trainer.devices`, the number of
    processes: None if it is "auto" or missing, else the number of cores divided by it, and at least 1.
    """
    threads: int | None = getattr(config, "threads", None)
    devices: Any = getattr(getattr(config, "trainer", None), "devices", "auto")
    if threads is not None or devices == "auto":
        return threads
    return max(1, cores() // devices)


def threads_each(config: WorkersConfig) -> int | None:
    """Return the number of CPU threads for each worker of a run; None: one thread per core.

    The number is `config.threads` if set. Otherwise it depends on `config.engine`: None for "here" (jobs run in this
    process), `config.cpus` for "ray", and the number of cores divided by `config.workers` for "processes".
    """
    if config.threads is not None or config.engine == "here":
        return config.threads
    return max(1, int(config.cpus) if config.engine == "ray" else cores() // config.workers)
