"""Workers, which do one job at a time: in this process, in a local process, or on a Ray cluster."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from typing import Any, Literal, TypeVar

from threedgen.config import plugins, registry
from threedgen.config.errors import ConfigError, ExpectedError, OutOfMemory, as_expected_error, one_line, short
from threedgen.run.disk import Tree
from threedgen.run.interrupts import STOP_CODES, Stopped
from threedgen.run.watch import Heartbeat, guarded

J = TypeVar("J")
Outcome = tuple[Literal["done", "stopped", "expected", "error"], Any]
"""Result of one attempt at a job, as a pair (state, value). The function `attempt` describes the pairs.

Failures are values, not raised exceptions, because some exceptions cannot be pickled.
"""


def attempt(work: Callable[[J], object], job: J, table: dict[str, dict[str, registry.Entry]]) -> Outcome:
    """Call `work(job)` in the process of a worker, and return how it ended and its result, as a pair (state, value).

    `table` is the component registry of the main process, {kind: {name: entry}}, with the components of its plug-ins.
    It is copied into the registry of the worker first.

    Returns:
        One of these pairs:

        - ("done", result of `work`)
        - ("stopped", exit code) after Ctrl-C or SIGTERM
        - ("error", (message, "")) if there was not enough memory
        - ("expected", exception) for any other error that the user can correct (ExpectedError), such as a full disk
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


class Worker:
    """Base class of workers. A worker runs one job at a time; this class runs it in the current process.

    Subclasses run jobs in another process. They override `submit`, and some of four methods that do nothing in this
    class: `stop()` asks the worker to stop its current job, `restart()` replaces a dead process, `check()` raises
    WorkerLost if the worker is on a Ray cluster that does not answer, and `close()` kills the worker.

    `submit(work, job, table)` calls `work(job)` in the worker, after it has copied `table`, the component registry of
    the main process, into the worker's registry. It returns a future. If the worker dies, the future has an exception.
    Otherwise its result is a pair (state, value), which says how the job ended:

    - ("done", result of `work`)
    - ("stopped", exit code) after Ctrl-C or SIGTERM
    - ("expected", exception) for an error that the user can correct (ExpectedError), such as a full disk
    - ("error", (message, traceback)) for any other exception, or (message, "") if there was not enough memory
    """

    def submit(self, *task: Any) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_result(attempt(*task))
        return future

    def stop(self) -> None:
        """Ask the worker to stop its current job. Does nothing for jobs in the current process (base class)."""

    def restart(self) -> None:
        """Start a new process after the old one died. Does nothing for workers without a process of their own."""

    def check(self) -> None:
        """Raise WorkerLost if the Ray cluster of the worker does not answer. Does nothing for workers without Ray."""

    def close(self) -> None:
        """Kill the worker. Does nothing for jobs in the current process (base class)."""


class LocalProcess(Worker):
    """Worker that runs its jobs, one at a time, in a process on this machine.

    The process is the only one of its process pool, because a process that dies breaks its whole pool.

    Args:
        gpu: number or UUID of the only GPU that the process sees; None: it sees all.
    """

    def __init__(self, gpu: str | None = None) -> None:
        self.gpu = gpu
        self.restart()

    def restart(self) -> None:
        """Start a new worker process, at first or after the old one died. Raises ConfigError if this fails."""
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit locks and threads of torch
        try:
            self.pool = ProcessPoolExecutor(1, spawn, init_process, (plugins.LOADED, self.gpu))
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


def visible_gpus() -> list[str]:
    """Return number or UUID of each CUDA device that this process sees, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    count, chosen = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if chosen is None else chosen.split(",")[:count]


def init_process(loaded: Mapping[str, plugins.Plugin], gpu: str | None = None) -> None:
    """Initialise a worker process: import the plug-ins `loaded`, and protect the process from the terminal's Ctrl-C.

    `loaded` maps module names to plug-ins: the variable `plugins.LOADED` of the main process. The process then raises
    `Stopped` on SIGTERM, and ends when its parent process ends. `gpu` is the only GPU that it sees; None: all.
    """
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA reads it when it starts, later

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

    `submit(work, job, table)` starts the task and returns a future of its result, as described in `Worker`. `stop()`
    and `close()` cancel it. `check()` raises WorkerLost if the head of the cluster has not answered for 40 seconds.

    Args:
        remote: the function `attempt_for_ray`, which does one job, as a Ray remote function.
        cancel: the function `ray.cancel`.
        head: thread that sends the head of the cluster a request every few seconds, and notes when it answers.
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
    """Call `work(job)` in a Ray task, and return how it ended and its result, as a pair (state, value).

    `task` is (work, job, table), the arguments of the function `attempt`. `table` is the component registry of the main
    process. The result is that of `attempt`: ("done", result of `work`), ("stopped", exit code), ("expected",
    exception) for an error that the user can correct, or ("error", (message, traceback)). If Ray cancels the task, by
    SIGINT, the result is ("stopped", 130).
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
        text = f"no Ray cluster responds at {short(address)}"
        if address == "local":
            text = "a Ray cluster cannot be started here"
        raise ConfigError(f"{text} ({reason})", "address") from None
    # no retries by Ray: WorkerPool counts the attempts
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(attempt_for_ray)
    return partial(RayTask, remote, ray.cancel, Heartbeat(ray.nodes, "the head of the Ray cluster"))
