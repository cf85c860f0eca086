"""Execution of jobs in this process, in local processes, or on a Ray cluster."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Generic, Literal, TypeVar

from threedgen.config import plugins, registry
from threedgen.config.errors import (
    ConfigError,
    ExpectedError,
    OutOfMemory,
    WorkerLost,
    as_expected_error,
    one_line,
    short,
)
from threedgen.run.disk import Tree
from threedgen.run.interrupts import STOP_CODES, Interrupts, Stopped
from threedgen.run.options import WorkersConfig
from threedgen.run.text import clean
from threedgen.run.watch import FrozenProcesses, Heartbeat, children, guarded

logger = logging.getLogger(__name__)
J = TypeVar("J")
R = TypeVar("R")
Outcome = tuple[Literal["done", "stopped", "expected", "error"], Any]
"""Result of one attempt at a job, as a pair (state, value). The function `attempt` describes the pairs.

Failures are values, not raised exceptions, because some exceptions cannot be pickled.
"""
POLL = 0.2  # maximum time in seconds until the main process reacts to a signal


def run_jobs(
    jobs: Iterable[J],
    work: Callable[[J], R],
    on_done: Callable[[J, R], None],
    on_failed: Callable[[J, str], None],
    options: WorkersConfig,
    on_start: Callable[[J], None] = lambda job: None,
) -> int:
    """Call `work(job)` for each job, in this process or in parallel workers. To resume, pass only unfinished jobs.

    Parallel workers are asked to stop at the first Ctrl-C or SIGTERM; a second Ctrl-C raises KeyboardInterrupt and
    kills them. With the engine "here" (this process), `work` itself must handle signals, and raise `Stopped`.

    Args:
        work: function that does one job. With parallel workers it must be picklable.
        jobs: the jobs, objects that `work` takes. While all workers are busy, at most one job is read ahead.
        on_done: function that is called in this process with each job and the result of `work`.
        on_failed: function that is called with a job and the error message of the last attempt, if all attempts raised
            an exception or lost their worker.
        options: `engine` ("here", "processes" or "ray"), number of `workers`, `attempts` per job, and options of Ray.
        on_start: function that is called with a job before each attempt.

    Returns:
        Exit code: 0 if all jobs are done or failed; 130 after Ctrl-C, or 143 after SIGTERM.

    Raises:
        ExpectedError: `work` raised an ExpectedError other than OutOfMemory, which is only a failed attempt.
        ConfigError: no Ray cluster responds, or no local process can be started.
        WorkerLost: several workers died in a row, or the Ray cluster does not answer.
    """
    start: Callable[[], Worker] = LocalProcess if options.engine == "processes" else Worker
    if options.engine == "ray":
        start = ray_tasks(options.address, options.cpus, options.gpus)
    interrupts, here = Interrupts(), options.engine == "here"
    with ExitStack() as stack:
        if not here:
            stack.enter_context(interrupts)
            interrupts.catch_sigterm()
        pool = WorkerPool(start, 1 if here else options.workers, work, options.attempts, interrupts)
        stack.callback(pool.close)
        return pool.run(jobs, on_done, on_failed, on_start)


def attempt(work: Callable[[J], R], job: J, table: dict[str, dict[str, registry.Entry]]) -> Outcome:
    """Call `work(job)` in the process of a worker, and return how it ended and its result, as a pair (state, value).

    `table` is the component registry of the main process, {kind: {name: entry}}, with the components of its plug-ins.
    It is copied into the registry of the worker first.

    Returns:
        One of these pairs:

        - ("done", result of `work`)
        - ("stopped", exit code) after Ctrl-C or SIGTERM
        - ("error", (message, "")) if there was not enough memory
        - ("expected", exception) for any other ExpectedError or a disk error
        - ("error", (message, traceback)) for any other exception
    """
    registry.TABLE.update(table)
    try:
        return "done", work(job)
    except Stopped as stop:
        return "stopped", stop.code
    except (Exception, SystemExit) as error:
        shown = as_expected_error(error)
        if isinstance(shown, OutOfMemory):  # other jobs may need less
            return "error", (one_line(shown), "")
        if shown is not None:  # as a class of config.errors: others may not be picklable
            kind = next(kind for kind in type(shown).__mro__ if kind.__module__ == ExpectedError.__module__)
            return "expected", kind(shown.problem, shown.key)
        return "error", (f"{type(error).__name__}: {error}", traceback.format_exc())


class WorkerPool(Generic[J, R]):
    """Pool of workers for jobs of type J with results of type R.

    `run(jobs, on_done, on_failed, on_start)` does the jobs. It calls `on_start(job)` before each attempt, and
    `on_done(job, result)` or `on_failed(job, message)` when a job is done or its last attempt failed. It returns 0, or
    the exit code of a stop: 130 (Ctrl-C) or 143 (SIGTERM).

    Args:
        start: function that creates a `Worker`, at first and to replace a dead one.
        count: number of workers.
        work: function that does one job.
        attempts: maximum number of attempts per job.
        interrupts: object that notices Ctrl-C and SIGTERM. After either, no more jobs start, and running jobs are asked
            to stop.
    """

    def __init__(
        self, start: "Callable[[], Worker]", count: int, work: Callable[[J], R], attempts: int, interrupts: Interrupts
    ) -> None:
        self.start, self.count, self.work, self.attempts, self.interrupts = start, count, work, attempts, interrupts
        self.idle = [start() for _ in range(count)]
        self.busy: dict[Future[Outcome], tuple[Worker, J, int]] = {}
        self.queue: list[tuple[J, int]] = []  # jobs read ahead or to retry, with the number of the attempt
        self.code = self.deaths = 0
        self.frozen = FrozenProcesses()

    def run(
        self,
        jobs: Iterable[J],
        on_done: Callable[[J, R], None],
        on_failed: Callable[[J, str], None],
        on_start: Callable[[J], None],
    ) -> int:
        jobs, stop_sent = iter(jobs), False
        while True:
            while self.idle and self.fetch(jobs):
                worker, (job, number) = self.idle.pop(), self.queue.pop()
                on_start(job)
                self.busy[worker.submit(self.work, job, registry.TABLE)] = worker, job, number
            if not self.busy:
                return self.code if self.stopped() else 0
            if not any(future.done() for future in self.busy):
                self.fetch(jobs)  # the iterator may be slow too
            if self.stopped() and not stop_sent:
                stop_sent = True
                for worker, _, _ in self.busy.values():
                    worker.stop()
            self.frozen.kill(children)
            for worker, _, _ in self.busy.values():
                worker.check()
            for future in wait(self.busy, POLL, return_when=FIRST_COMPLETED).done:
                worker, job, number = self.busy.pop(future)
                state, value = self.answer(future, worker)
                if state == "done":
                    on_done(job, value)
                elif state == "error" and not self.stopped():
                    reason, trace = value
                    if number < self.attempts:
                        logger.warning("attempt %d of %d failed: %s", number, self.attempts, clean(reason))
                        self.queue.append((job, number + 1))
                    else:
                        logger.error("a job failed: %s", "\n".join(filter(None, (reason, trace))))
                        on_failed(job, reason)

    def stopped(self) -> bool:
        self.code = self.code or (143 if self.interrupts.terminated else 130 if self.interrupts.stop else 0)
        return self.code != 0

    def fetch(self, jobs: Iterable[J]) -> bool:
        """Read the next job from the iterator `jobs` into the queue if no job waits in the queue.

        Returns whether a waiting job may start: False if no job waits, or after Ctrl-C or SIGTERM.
        """
        if not self.queue and not self.stopped():
            self.queue += [(job, 1) for _, job in zip(range(1), jobs, strict=False)]
        return bool(self.queue) and not self.stopped()

    def answer(self, future: Future[Outcome], worker: "Worker") -> Outcome:
        """Return the result of a finished attempt at a job, and mark the worker, or its replacement, as idle.

        The result is that of the function `attempt`: ("done", result of the job), ("stopped", exit code) or ("error",
        (message, traceback)). A dead worker gives "error", and a new worker replaces it. If the job raised an
        ExpectedError, it is raised again. Raises WorkerLost if more than count * (attempts + 1) workers died in a row.
        """
        if death := future.exception():
            worker.close()
            self.idle.append(self.start())
            self.deaths += 1
            if self.deaths > self.count * (self.attempts + 1):
                raise WorkerLost(f"{self.deaths} workers died in a row ({clean(str(death))})")
            reason = one_line(death).partition(". ")[0]  # Ray adds a page of advice
            return "error", (f"its worker was lost ({reason})", "")
        self.idle.append(worker)
        self.deaths, (state, value) = 0, future.result()
        if state == "expected":
            raise value
        self.code = self.code or (value if state == "stopped" else 0)
        return state, value

    def close(self) -> None:
        for worker in [*self.idle, *(worker for worker, _, _ in self.busy.values())]:
            worker.close()


class Worker:
    """Base class of workers. A worker runs one job at a time; this class runs it in the current process.

    Subclasses run jobs in another process. They override `submit`, and implement `stop`, `check` and `close`, which do
    nothing in this class.

    `submit(work, job, table)` calls `work(job)` in the worker, after it has copied `table`, the component registry of
    the main process, into the worker's registry. It returns a future of a pair (state, value): ("done", result of
    `work`), ("stopped", exit code), ("expected", exception) or ("error", (message, traceback)). If the worker dies,
    the future has an exception.
    """

    def submit(self, *task: Any) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_result(attempt(*task))
        return future

    def stop(self) -> None:
        """Ask the worker to stop its current job. Does nothing for jobs in the current process (base class)."""

    def check(self) -> None:
        """Raise WorkerLost if the Ray cluster of the worker does not answer. Does nothing for workers without Ray."""

    def close(self) -> None:
        """Kill the worker. Does nothing for jobs in the current process (base class)."""


class LocalProcess(Worker):
    """Worker that runs its jobs, one at a time, in a process on this machine.

    The process is the only one of its process pool, because a process that dies breaks its whole pool.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start a new worker process, at first or after the old one died. Raises ConfigError if this fails."""
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit locks and threads of torch
        try:
            self.pool = ProcessPoolExecutor(1, spawn, init_process, (plugins.LOADED,))
            self.pid = self.pool.submit(os.getpid)
        except OSError as error:
            problem = f"no worker process can be started ({error.strerror})"
            raise ConfigError(f"{problem}. Check /dev/shm and `ulimit -n`, or set engine=here", "engine") from None

    def submit(self, *task: Any) -> Future[Outcome]:
        with suppress(BrokenProcessPool):
            return self.pool.submit(attempt, *task)
        self.restart()  # it died while idle
        return self.pool.submit(attempt, *task)

    def stop(self) -> None:
        self.send(signal.SIGTERM)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.send(getattr(signal, "SIGKILL", signal.SIGTERM))

    def send(self, signal_: signal.Signals) -> None:
        with suppress(OSError, BrokenProcessPool, CancelledError):  # it is dead or was never started
            os.kill(self.pid.result(), signal_)


def init_process(loaded: Mapping[str, plugins.Plugin]) -> None:
    """Initialise a worker process: import the plug-ins `loaded`, and protect the process from the terminal's Ctrl-C.

    `loaded` maps module names to plug-ins: the variable `plugins.LOADED` of the main process. The process then raises
    `Stopped` on SIGTERM, and ends when its parent process ends.
    """

    def stop(*signal_and_frame: object) -> None:  # replaced by Interrupts during a training
        raise Stopped(STOP_CODES[1])

    def exit_with_parent() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
        os._exit(1)  # the main process was killed; its next start does the job again

    plugins.load_all(loaded)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=exit_with_parent, daemon=True).start()


class RayTask(Worker):
    """Worker that runs each job as a task on a Ray cluster.

    Args:
        remote: the function `attempt_for_ray`, which does one job, as a Ray remote function.
        cancel: the function `ray.cancel`.
        head: thread that notices when the head of the cluster no longer answers.
    """

    def __init__(self, remote: Any, cancel: Callable[..., None], head: Heartbeat) -> None:
        self.remote, self.cancel, self.head, self.reference = remote, cancel, head, None

    def submit(self, *task: Any) -> Future[Outcome]:
        self.reference = self.remote.remote(*task)
        return self.reference.future()  # type: ignore[attr-defined]

    def stop(self) -> None:
        self.cancel(self.reference)

    def check(self) -> None:
        self.head.check()

    def close(self) -> None:
        if self.reference is not None:
            self.cancel(self.reference, force=True)  # no effect on a finished task


def attempt_for_ray(*task: Any) -> Outcome:
    """Call `attempt(*task)`, which runs a job, in a Ray task, and return its result. `task` is (work, job, table).

    If Ray cancels the task, by SIGINT, the result is ("stopped", 130).
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # processes started with & ignore SIGINT
    try:
        with guarded(os.getpid()):
            return attempt(*task)
    except KeyboardInterrupt:
        return "stopped", STOP_CODES[0]


def ray_tasks(address: str | None, cpus: float, gpus: float) -> Callable[[], Worker]:
    """Connect to a Ray cluster; return a function that creates a worker there.

    Raises ConfigError if no cluster responds.

    Args:
        address: address of the cluster; None: the environment variable RAY_ADDRESS, or a new local cluster.
        cpus, gpus: numbers of CPUs and GPUs that Ray reserves per job.
    """
    import ray

    # import path and plug-ins of this process, valid on all machines that share the disk
    paths = {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    environment: Tree = {"env_vars": paths}
    if loaded := plugins.LOADED:

        def setup() -> None:  # Ray needs its __name__
            plugins.load_all(loaded)

        environment["worker_process_setup_hook"] = setup
    # "local": with None, Ray connects to the cluster last started here, running or not
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, runtime_env=environment)
    except Exception as error:  # Ray raises many classes
        reason = " ".join(str(error).split())[:200]
        text = (
            "a Ray cluster cannot be started here"
            if address == "local"
            else f"no Ray cluster responds at {short(address)}"
        )
        raise ConfigError(f"{text} ({reason})", "address") from None
    # no retries by Ray: WorkerPool counts the attempts
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(attempt_for_ray)
    return partial(RayTask, remote, ray.cancel, Heartbeat(ray.nodes, "the head of the Ray cluster"))
