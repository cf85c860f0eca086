"""Runs jobs one after the other in this process, or side by side in processes of this machine or on a Ray cluster.

    code = run_jobs(jobs, work, on_done, engine="processes", workers=4, attempts=3)

What is done is known by the files that ``work`` leaves: whoever hands out only jobs that are not finished goes on with
what was killed. A worker process lives for many jobs, and its death costs no other job anything.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Literal

from threedgen.config import ConfigError, registry
from threedgen.config.optional import require
from threedgen.run.interrupts import STOPPED, Interrupts, Stopped
from threedgen.run.text import clean, clean_logs

logger = logging.getLogger(__name__)
Answer = tuple[Literal["done", "stopped", "mistake", "error"], Any]
"""What an attempt came to, as plain data: not every exception survives pickling."""
POLL = 0.2
"""Seconds until a signal is noticed at the latest."""


def run_jobs(
    jobs: Iterable[Any],
    work: Callable[[Any], Any],
    on_done: Callable[[Any, Any], None],
    on_failed: Callable[[Any, str], None] | None = None,
    *,
    engine: Literal["here", "processes", "ray"] = "here",
    workers: int = 1,
    attempts: int = 1,
    address: str | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
    interrupts: Interrupts | None = None,
    on_begun: Callable[[Any], None] = lambda job: None,
) -> int:
    """Does ``work(job)`` for each job; returns 0, or 130 or 143 if Ctrl-C or SIGTERM came, here or to a worker.

    ``jobs`` are drawn when a worker is free, and one ahead. ``on_begun(job)``, ``on_done(job, result)`` and
    ``on_failed(job, reason)`` are called in this process. A job fails when it has raised an exception, or lost its
    worker, ``attempts`` times; without ``on_failed`` that raises RuntimeError. Raises ConfigError if ``work`` does, if
    no Ray cluster answers at ``address``, and if workers keep dying. Each worker on Ray asks for ``cpus`` and ``gpus``.

    The first Ctrl-C, or SIGTERM, is passed on and the workers are waited for; at the second Ctrl-C, which raises
    KeyboardInterrupt, they are gone at once. ``interrupts``: the caller's own. With ``engine`` here, signals are left
    to ``work``, but for ``interrupts``, which are obeyed between two jobs.
    """
    kinds: dict[str, Callable[[], Worker]] = {"here": Worker, "processes": LocalProcess}
    start = kinds.get(engine) or ray_tasks(address, cpus, gpus)
    heard = interrupts or Interrupts()
    with ExitStack() as stack:
        if engine != "here":
            stack.enter_context(heard)
            heard.obey_sigterm()
        crew = Crew(start, 1 if engine == "here" else workers, work, attempts, heard)
        stack.callback(crew.close)
        return crew.run(jobs, on_done, on_failed, on_begun)


def attempt(work: Callable[[Any], Any], job: Any, table: dict[str, Any]) -> Answer:
    """Does one job, in a worker. ``table``: the registry of the process that began, plug-ins included."""
    registry.TABLE.update(table)
    try:
        return "done", work(job)
    except Stopped as stop:
        return "stopped", stop.code
    except ConfigError as error:
        return "mistake", str(error)
    except (Exception, SystemExit) as error:
        logger.debug("a job failed", exc_info=True)
        return "error", f"{type(error).__name__}: {error}"


class Crew:
    """Hands out jobs to ``count`` workers and settles their answers."""

    def __init__(
        self, start: Callable[[], Worker], count: int, work: Callable[[Any], Any], attempts: int, heard: Interrupts
    ) -> None:
        self.start, self.count, self.work, self.attempts, self.heard = start, count, work, attempts, heard
        self.idle = [start() for _ in range(count)]
        self.busy: dict[Future[Answer], tuple[Worker, Any, int]] = {}
        self.coming: list[tuple[Any, int]] = []  # drawn ahead or to be tried again, with the number of the attempt
        self.code = self.deaths = 0

    def run(
        self,
        jobs: Iterable[Any],
        on_done: Callable[[Any, Any], None],
        on_failed: Callable[[Any, str], None] | None,
        on_begun: Callable[[Any], None],
    ) -> int:
        jobs, told = iter(jobs), False
        while True:
            while self.idle and self.draw(jobs):
                worker, (job, number) = self.idle.pop(), self.coming.pop()
                on_begun(job)
                self.busy[worker.submit(self.work, job, registry.TABLE)] = worker, job, number
            if not self.busy:
                return self.code if self.stopped() else 0
            if not any(future.done() for future in self.busy):
                self.draw(jobs)  # which may take its time too
            if self.stopped() and not told:
                told = True
                for worker, _, _ in self.busy.values():
                    worker.stop()
            for future in wait(self.busy, POLL, return_when=FIRST_COMPLETED).done:
                worker, job, number = self.busy.pop(future)
                state, value = self.answer(future, worker)
                if state == "done":
                    on_done(job, value)
                elif state == "error" and not self.stopped():
                    if number < self.attempts:
                        logger.warning("attempt %d of %d failed: %s", number, self.attempts, clean(value))
                        self.coming.append((job, number + 1))
                    elif on_failed is None:
                        raise RuntimeError(value)
                    else:
                        on_failed(job, value)

    def stopped(self) -> bool:
        self.code = self.code or (143 if self.heard.terminated else 130 if self.heard.stop else 0)
        return self.code != 0

    def draw(self, jobs: Iterable[Any]) -> bool:
        """Is there a job to begin? Not if a signal came while it was drawn."""
        if not self.coming and not self.stopped():
            self.coming += [(job, 1) for _, job in zip(range(1), jobs, strict=False)]
        return bool(self.coming) and not self.stopped()

    def answer(self, future: Future[Answer], worker: Worker) -> Answer:
        """Reads what a worker said; one that died is replaced. Raises ConfigError for mistakes, and if all die."""
        if death := future.exception():
            worker.close()
            self.idle.append(self.start())
            self.deaths += 1
            if self.deaths > self.count * (self.attempts + 1):
                raise ConfigError(f"engine: {self.deaths} workers died one after the other ({clean(str(death))})")
            return "error", f"its worker was lost ({type(death).__name__})"
        self.idle.append(worker)
        self.deaths, (state, value) = 0, future.result()
        if state == "mistake":
            raise ConfigError(value)
        self.code = self.code or (value if state == "stopped" else 0)
        return state, value

    def close(self) -> None:
        for worker in [*self.idle, *(worker for worker, _, _ in self.busy.values())]:
            worker.close()


# --- where they work ---------------------------------------------------------------------------------------------


class Worker:
    """Does one job at a time: this one in the process that asks. If it dies, the future has an exception."""

    def submit(self, *task: Any) -> Future[Answer]:
        future: Future[Answer] = Future()
        future.set_result(attempt(*task))
        return future

    def stop(self) -> None:
        """Asks for an orderly end of the job."""

    def close(self) -> None:
        """Ends the worker, whatever it does."""


class LocalProcess(Worker):
    """A pool of one process: so a death is known to be that of one job, and the pools of the others stay whole."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit locks and threads of torch
        self.pool = ProcessPoolExecutor(1, spawn, begin)
        self.number = self.pool.submit(os.getpid)

    def submit(self, *task: Any) -> Future[Answer]:
        with suppress(BrokenProcessPool):
            return self.pool.submit(attempt, *task)
        self.__init__()  # type: ignore[misc]  # it died while it had nothing to do
        return self.pool.submit(attempt, *task)

    def stop(self) -> None:
        self.send(signal.SIGTERM)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.send(getattr(signal, "SIGKILL", signal.SIGTERM))

    def send(self, which: signal.Signals) -> None:
        with suppress(OSError, BrokenProcessPool, CancelledError):  # it has died, or never begun
            os.kill(self.number.result(), which)


def begin() -> None:
    """Prepares a process, in a group of its own: Ctrl-C in the terminal is for the one that began."""

    def leave(*signal_and_frame: object) -> None:  # a task that trains has its own way to obey, and then this one again
        raise Stopped(STOPPED[1])

    def follow() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
        os._exit(1)  # the process that began was killed: the job is left to its next start

    clean_logs()
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=follow, daemon=True).start()


class RayTask(Worker):
    """One task of a Ray cluster at a time."""

    def __init__(self, remote: Any, cancel: Callable[..., None]) -> None:
        self.remote, self.cancel, self.reference = remote, cancel, None

    def submit(self, *task: Any) -> Future[Answer]:
        self.reference = self.remote.remote(*task)
        future: Future[Answer] = self.reference.future()  # type: ignore[attr-defined]
        return future

    def stop(self) -> None:
        self.cancel(self.reference)

    def close(self) -> None:
        if self.reference is not None:
            self.cancel(self.reference, force=True)  # nothing happens to a task that is over


def attempt_for_ray(*task: Any) -> Answer:
    """Hears Ray's way to stop a task, which is SIGINT: what a shell begins with & ignores that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return attempt(*task)
    except KeyboardInterrupt:
        return "stopped", STOPPED[0]


def ray_tasks(address: str | None, cpus: float, gpus: float) -> Callable[[], Worker]:
    """Connects to a Ray cluster, or begins one on this machine. Raises ConfigError."""
    require("ray", "engine: ray", "choose engine=processes")
    import ray

    # a checkout is found by its path, on all machines that share the disk
    paths = {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, runtime_env={"env_vars": paths})
    except Exception as error:  # Ray raises what it likes: no such cluster, none that starts in time
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"there is no Ray cluster that answers ({reason}; got {address!r})", "address") from None
    # Ray itself retries nothing: attempts are counted here
    return partial(RayTask, ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(attempt_for_ray), ray.cancel)
