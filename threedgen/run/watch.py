"""Detection of frozen (SIGSTOP) and dead processes in a group. Such a process would block the others for ever."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

logger = logging.getLogger(__name__)
FROZEN_CHECKS, CHECK_SECONDS = 6, 5.0


class FrozenProcesses:
    """Detector of frozen processes, which would block other processes for ever. Call its method `kill` in a loop.

    A process is frozen if FROZEN_CHECKS checks in a row find it stopped (SIGSTOP). There is at most one check per
    CHECK_SECONDS, even if `kill` is called more often.
    """

    def __init__(self) -> None:
        self._checks, self._next = Counter[int](), 0.0

    def kill(self, processes: Callable[[], Iterable[psutil.Process]]) -> None:
        """Check the processes that the function `processes` returns. Kill the frozen ones, with a warning."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + CHECK_SECONDS
        with suppress(psutil.Error):  # one has just ended
            stopped = [process for process in processes() if process.status() == psutil.STATUS_STOPPED]
            self._checks = Counter({process.pid: self._checks[process.pid] + 1 for process in stopped})
            for process in stopped:
                if self._checks[process.pid] >= FROZEN_CHECKS:
                    logger.warning("the worker process %d is frozen (SIGSTOP) and is killed", process.pid)
                    process.kill()


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
