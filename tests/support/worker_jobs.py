"""Jobs for the tests of workers, known by name to worker processes; each leaves a trace in files."""

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from threedgen.config import ConfigError
from threedgen.run.interrupts import Stopped


class Job(NamedTuple):
    """``trouble``: what goes wrong, each time or once only."""

    name: str
    folder: str
    trouble: str = ""
    once: bool = False

    def traces(self, word: str) -> int:
        return len(list(Path(self.folder).glob(f"{self.name}.{word}.*")))


def work(job: Job) -> int:
    trace(job, "started")
    if job.trouble and not (job.once and job.traces("started") > 1):
        fail(job)
    trace(job, "done")
    return os.getpid()


def trace(job: Job, word: str) -> None:
    (Path(job.folder) / f"{job.name}.{word}.{time.time_ns()}").write_text(str(os.getpid()))


def fail(job: Job) -> None:
    match job.trouble:
        case "fail":
            raise ValueError("no memory")
        case "starve":
            raise MemoryError("3 GB")
        case "mistake":
            raise ConfigError("weights: there are none")
        case "obeyed":
            raise Stopped(143)
        case "die":
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            trace(job, "deaf")
            time.sleep(100)
        case "wait":  # until a signal comes, at which it saves what it has
            try:
                time.sleep(100)
            finally:
                trace(job, "saved")
        case unknown:
            raise AssertionError(unknown)
