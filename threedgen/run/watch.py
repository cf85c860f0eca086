"""Detection of frozen (SIGSTOP) and dead processes of a run. Such a process would block the others for ever.

python -m threedgen.run.watch PID    kill the process PID if it is frozen; runs until PID ends
"""

import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

from threedgen.config.errors import WorkerLost

logger = logging.getLogger(__name__)
FROZEN_CHECKS, CHECK_SECONDS = 6, 5.0
LOST_SECONDS = 40.0  # without an answer; Ray ends the process after 60


class FrozenProcesses:
    """Detector of frozen processes, which would block other processes for ever.

    Call its method `kill(processes)` in a loop, where `processes` is a function that returns the processes to watch,
    such as the children of this one. It kills those that are frozen, with a warning. A process is frozen if 6 checks in
    a row (FROZEN_CHECKS) find it stopped (SIGSTOP). There is at most one check per 5 seconds (CHECK_SECONDS), even if
    `kill` is called more often.
    """

    def __init__(self) -> None:
        self._checks, self._next = Counter[int](), 0.0

    def kill(self, processes: Callable[[], Iterable[psutil.Process]]) -> None:
        """Check the processes that the function `processes` returns. Kill the frozen ones, with a warning.

        A process is frozen if 6 checks in a row (FROZEN_CHECKS) find it stopped (SIGSTOP). Calls within 5 seconds
        (CHECK_SECONDS) of the last check do nothing.
        """
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


@contextmanager
def guarded(pid: int) -> Iterator[None]:
    """Return a context in which a second process kills the process `pid` if it is frozen (stopped by SIGSTOP).

    Jobs on other machines of a Ray cluster need this, because `FrozenProcesses` in the main process cannot see them.
    """
    guard = subprocess.Popen([sys.executable, "-m", __name__, str(pid)], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        guard.kill()
        guard.wait()


class Heartbeat:
    """Thread that calls `ask` every 5 seconds (CHECK_SECONDS), to notice when a service no longer answers.

    `ask` is a function that sends the service any request, such as a list of the nodes of a Ray cluster. It returns
    after the answer; without an answer it may block or raise. The owner of the thread calls `check` in a loop, which
    raises WorkerLost, with the `name` of the service, after 40 seconds (LOST_SECONDS) without an answer.
    """

    def __init__(self, ask: Callable[[], object], name: str) -> None:
        self.ask, self.name, self._answered = ask, name, time.monotonic()
        threading.Thread(target=self._run, daemon=True).start()

    def check(self) -> None:
        """Raise WorkerLost if the service that the thread asks has not answered for 40 seconds (LOST_SECONDS)."""
        if time.monotonic() - self._answered > LOST_SECONDS:
            problem = f"{self.name} has not answered for {LOST_SECONDS:.0f} seconds"
            raise WorkerLost(f"{problem}. Start it and run the same command again to continue")

    def _run(self) -> None:
        while True:
            with suppress(Exception):
                self.ask()
                self._answered = time.monotonic()
            time.sleep(CHECK_SECONDS)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    with suppress(psutil.NoSuchProcess):
        watched, frozen = psutil.Process(int(sys.argv[1])), FrozenProcesses()
        while not ended(watched):
            frozen.kill(lambda: [watched])
            time.sleep(CHECK_SECONDS)
