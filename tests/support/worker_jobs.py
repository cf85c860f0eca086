"""Jobs for the tests of workers, known by name to worker processes; each leaves a trace in files."""

import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

from threedgen.config import ConfigError
from threedgen.run.interrupts import Stopped


class Job(NamedTuple):
    """``trouble``: a key of TROUBLES, each time or once only."""

    name: str
    folder: str
    trouble: str = ""
    once: bool = False

    def traces(self, word: str) -> int:
        return len(list(Path(self.folder).glob(f"{self.name}.{word}.*")))


def work(job: Job) -> int:
    trace(job, "started")
    if job.trouble and not (job.once and job.traces("started") > 1):
        TROUBLES[job.trouble](job)
    trace(job, "done")
    return os.getpid()


def trace(job: Job, word: str) -> None:
    (Path(job.folder) / f"{job.name}.{word}.{time.time_ns()}").write_text(str(os.getpid()))


def fail(job: Job) -> None:
    raise ValueError("no memory")


def starve(job: Job) -> None:
    raise MemoryError("3 GB")


def mistake(job: Job) -> None:
    raise ConfigError("weights: there are none")


def obeyed(job: Job) -> None:
    raise Stopped(143)


def die(job: Job) -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def freeze(job: Job) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def wait(job: Job) -> None:
    """Until a signal comes, at which it saves what it has."""
    try:
        time.sleep(100)
    finally:
        trace(job, "saved")


def deaf(job: Job) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trace(job, "deaf")
    time.sleep(100)


TROUBLES: dict[str, Any] = {
    "fail": fail, "starve": starve, "mistake": mistake, "obeyed": obeyed, "die": die, "freeze": freeze,
    "wait": wait, "deaf": deaf,
}  # fmt: skip
