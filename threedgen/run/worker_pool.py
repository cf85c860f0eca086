"""Execution of jobs, one after another in this process or in parallel by a pool of workers."""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from itertools import cycle, islice
from typing import Generic, TypeVar

from threedgen.config import registry
from threedgen.config.errors import WorkerLost, one_line
from threedgen.run.interrupts import Interrupts
from threedgen.run.options import WorkersConfig
from threedgen.run.text import clean
from threedgen.run.watch import FrozenProcesses, children
from threedgen.run.workers import LocalProcess, Outcome, Worker, ray_tasks, visible_gpus

logger = logging.getLogger(__name__)
J = TypeVar("J")
R = TypeVar("R")
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

    If `work` raises an exception or its worker dies, the attempt has failed, and the job is repeated until it has had
    `options.attempts` attempts. An ExpectedError (error that the user can correct) other than OutOfMemory, and an error
    of a full or failed disk, end the call instead.

    Parallel workers are asked to stop at the first Ctrl-C or SIGTERM; a second Ctrl-C raises KeyboardInterrupt and
    kills them. With the engine "here" (this process), `work` itself must handle signals, and raise `Stopped`.

    Args:
        jobs: the jobs, objects that `work` takes. While all workers are busy, at most one job is read ahead.
        work: function that does one job. With parallel workers it must be picklable.
        on_done: function that is called in this process with each job and the result of `work`.
        on_failed: function that is called with a job and the error message of its last attempt, if all attempts failed.
        options: `engine` ("here", "processes" or "ray"), number of `workers`, `attempts` per job, and options of Ray.
        on_start: function that is called with a job before each attempt.

    Returns:
        Exit code: 0 if all jobs are done or failed; 130 after Ctrl-C, or 143 after SIGTERM.

    Raises:
        ExpectedError: `work` raised an ExpectedError other than OutOfMemory, or the disk is full or failed.
        ConfigError: no Ray cluster responds, or no local process can be started.
        WorkerLost: several workers died in a row, or the Ray cluster does not answer.
    """
    start: Callable[[], Worker] = Worker
    if options.engine == "processes":
        gpus = cycle(visible_gpus() or [None])  # each worker has one
        start = lambda: LocalProcess(next(gpus))  # noqa: E731
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


class WorkerPool(Generic[J, R]):
    """Pool of workers for jobs of type J with results of type R.

    `run(jobs, on_done, on_failed, on_start)` does the jobs. It calls `on_start(job)` before each attempt, and
    `on_done(job, result)` or `on_failed(job, message)` when a job is done or its last attempt failed. It returns 0, or
    the exit code of a stop: 130 (Ctrl-C) or 143 (SIGTERM).

    Args:
        start: function that creates a `Worker`.
        count: number of workers.
        work: function that does one job.
        attempts: maximum number of attempts per job.
        interrupts: object that notices Ctrl-C and SIGTERM. After either, no more jobs start, and running jobs are asked
            to stop.
    """

    def __init__(
        self, start: Callable[[], Worker], count: int, work: Callable[[J], R], attempts: int, interrupts: Interrupts
    ) -> None:
        self.count, self.work, self.attempts, self.interrupts = count, work, attempts, interrupts
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
        """Read the next job from `jobs` into the list `queue` if it is empty. Return whether a job of it may start.

        `jobs` must be an iterator. The result is False if `queue` is still empty, because `jobs` has ended. It is also
        False after Ctrl-C or SIGTERM: then nothing is read, and a job that waits in `queue` does not start.
        """
        if not self.queue and not self.stopped():
            self.queue += [(job, 1) for job in islice(jobs, 1)]
        return bool(self.queue) and not self.stopped()

    def answer(self, future: Future[Outcome], worker: Worker) -> Outcome:
        """Return how a finished attempt at a job ended, as a pair (state, value), and mark its worker as idle.

        `worker` made the attempt, and `future` is what its method `submit` returned. A dead worker is restarted. This
        method repeats no job; its caller `run` does so after an "error", if attempts are left.

        Returns:
            ("done", result of the job); ("stopped", exit code) after Ctrl-C or SIGTERM; or ("error", (message,
            traceback)) if the worker died, if memory ran out, or for any exception of the job that is no ExpectedError.

        Raises:
            ExpectedError: the job ended with this error, which the user can correct, such as a full disk.
            WorkerLost: more than C * (A + 1) workers died in a row, for C workers and at most A attempts per job.
        """
        if death := future.exception():
            worker.close()
            worker.restart()
            self.idle.append(worker)
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
