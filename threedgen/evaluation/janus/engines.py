"""Where workers run: this process, processes of this machine, a Ray cluster. A worker that dies is replaced."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from threedgen.config import ConfigError, registry
from threedgen.run.interrupts import Interrupts
from threedgen.run.text import clean

from .jobs import Job
from .options import JanusBenchmarkConfig
from .worker import STOPPED, work

logger = logging.getLogger(__name__)
POLL = 0.2


class Worker(Protocol):
    """Somewhere, ``work`` is running."""

    def code(self) -> int | None:
        """What it returned; None while it runs, and something else than 0 and STOPPED if it died."""
        ...

    def end(self) -> None:
        """Make it stop."""
        ...


def employ(config: JanusBenchmarkConfig, told: Callable[[Job], None], progress: Callable[[], int]) -> int:
    """Let the config's engine do all jobs in the folder ``config.out``; returns 0, or the code of a stopped task.

    ``told`` hears of each job that this process has ended; ``progress`` says how many all have ended. Raises
    ConfigError if the workers of an engine cannot live.
    """
    if config.engine == "here":
        return work(config, told=told)
    if config.engine == "ray":
        connect(config)
    start = RayWorker if config.engine == "ray" else LocalWorker
    return supervise(lambda number: start(config, number), config.workers, config.attempts, progress)


def supervise(start: Callable[[int], Worker], count: int, attempts: int, progress: Callable[[], int]) -> int:
    """Keep ``count`` workers at work until all have returned. Ctrl-C and SIGTERM let them stop at their next good
    moment, a second Ctrl-C at once."""
    workers = {number: start(number) for number in range(count)}
    done, deaths, stopped, ending = progress(), 0, 0, False
    with Interrupts() as interrupts:
        interrupts.obey_sigterm()
        try:
            while workers:
                time.sleep(POLL)
                if (now := progress()) > done:
                    done, deaths = now, 0
                for number, worker in list(workers.items()):
                    code = worker.code()
                    if code is None:
                        continue
                    del workers[number]
                    if code in STOPPED:
                        stopped = stopped or code
                    elif code and not ending:
                        deaths += 1
                        if deaths > count * (attempts + 1):
                            raise ConfigError(f"{deaths} workers died one after the other (code {code})", "engine")
                        logger.warning("a worker died (code %s) and is replaced", code)
                        workers[number] = start(number)
                stopped = stopped or (143 if interrupts.terminated else 130 if interrupts.stop else 0)
                if stopped and not ending:
                    ending = True
                    for worker in workers.values():
                        worker.end()
        finally:
            for worker in workers.values():
                worker.end()
    return stopped


class LocalWorker:
    """A process of this machine, in a group of its own: Ctrl-C in the terminal is for the one that began."""

    def __init__(self, config: JanusBenchmarkConfig, number: int) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit locks and threads of torch
        self.process = spawn.Process(target=_run, args=(config, registry.TABLE, number), daemon=True)
        self.process.start()

    def code(self) -> int | None:
        return self.process.exitcode

    def end(self) -> None:
        self.process.terminate()


def _run(config: JanusBenchmarkConfig, table: Any, number: int) -> None:
    def stop(*signal_and_frame: object) -> None:  # a task that trains has its own way to obey, and then this one again
        raise SystemExit(STOPPED[1])

    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGTERM, stop)
    raise SystemExit(work(config, table, number))


def connect(config: JanusBenchmarkConfig) -> None:
    """Raises ConfigError if there is no such cluster."""
    import ray

    # a checkout is found by its path, on all machines that share the disk
    paths = {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    try:
        ray.init(
            address=config.address, ignore_reinit_error=True, log_to_driver=False, runtime_env={"env_vars": paths}
        )
    except Exception as error:  # Ray raises what it likes: no such cluster, none that starts in time
        reason = " ".join(str(error).split())[:200]
        problem = f"there is no Ray cluster that answers ({reason}; got {config.address!r})"
        raise ConfigError(problem, "address") from None


def work_for_ray(config: JanusBenchmarkConfig, table: Any, number: int) -> int:
    """``work``, where Ray's way to stop a task is heard, which is SIGINT: what a shell begins with & ignores that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return work(config, table, number)


class RayWorker:
    """A task of a Ray cluster, whose machines see the folder under the same path. Ray itself retries nothing: a new
    worker finds in the claims what the dead one had."""

    def __init__(self, config: JanusBenchmarkConfig, number: int) -> None:
        import ray

        config = config.model_copy(update={"out": os.path.abspath(str(config.out))})
        remote = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_retries=0, max_calls=1)(work_for_ray)
        self.ray, self.answer = ray, remote.remote(config, registry.TABLE, number)

    def code(self) -> int | None:
        ready, _ = self.ray.wait([self.answer], timeout=0)
        if not ready:
            return None
        try:
            return int(self.ray.get(self.answer))
        except self.ray.exceptions.TaskCancelledError:
            return STOPPED[0]
        except self.ray.exceptions.RayError as error:
            if isinstance(cause := getattr(error, "cause", None), ConfigError):
                raise cause from None
            logger.warning("%s", clean(str(error).strip().splitlines()[-1]))
            return 1

    def end(self) -> None:
        self.ray.cancel(self.answer)
