"""Job queue of the studio. It starts one run at a time, as a process with the command line of a normal run.

The page stays available if a run crashes. A run is stopped with the signal of Ctrl-C; if the user submits the same
prompt again, the run resumes.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import threedgen
from threedgen.config.errors import ConfigError, in_a_line
from threedgen.run.interrupts import STOP_CODES
from threedgen.systems.batch.jobs import job as run_job
from threedgen.systems.batch.jobs import words_of
from threedgen.viewer.record import read_record

from .options import StudioConfig

WAITING, RUNNING, STOPPING = "waiting", "running", "stopping"
FINISHED, INTERRUPTED, FAILED = "finished", "interrupted", "failed"
LIVE = (RUNNING, STOPPING)
PROGRESS = re.compile(r"(?P<phase>[^:]+): (?P<done>\d+)/(?P<total>\d+)(?:, (?P<details>.*))?")
"""Pattern of the progress lines that `threedgen.run.progress.Count` prints, such as "train: 3/100, loss 0.1"."""
PROGRESS_ENV = {"THREEDGEN_PROGRESS_SECONDS": "1", "CI": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
"""Environment variables that make a run print a progress line every second."""


@dataclass
class Job:
    """Entry of the queue: the run of one prompt, with its state and progress."""

    prompt: str
    seed: int
    name: str  # folder of the run below the studio's folder
    command: list[str]
    number: int = 0  # identifies the job in requests
    state: str = WAITING
    progress: Mapping[str, str] = field(default_factory=dict)  # groups of PROGRESS in the last progress line
    error: str = ""


def make_job(config: StudioConfig, root: Path, prompt: str, seed: int) -> Job:
    """Return the job for a prompt, finished if its run in the folder `root` is finished. Raises ConfigError."""
    run = config.run_config(prompt, seed=seed)
    run.check()
    name = run_job(config.config, run, prompt, run.seed).key
    method, *own = words_of(config.config)
    values = (*config.overrides, *own, f"prompt={prompt}", f"seed={run.seed}", f"out={root / name}")
    job = Job(prompt, run.seed, name, [sys.executable, "-m", "threedgen", "--config", method, *values])
    with suppress(ConfigError):  # no such run yet
        job.state = FINISHED if read_record(root / name).state == FINISHED else WAITING
    return job


class Queue:
    """List of jobs, and a worker thread that runs them in turn. `over` is the number of runs that have ended."""

    def __init__(self) -> None:
        self.over = 0
        self._jobs: list[Job] = []
        self._numbers = count(1)
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1)

    def jobs(self) -> list[Job]:
        with self._lock:
            return list(self._jobs)

    def add(self, job: Job) -> None:
        """Append a job. It replaces an ended job with the same name; ConfigError if that job has not ended."""
        with self._lock:
            if any(other.name == job.name and other.state in (WAITING, *LIVE) for other in self._jobs):
                raise ConfigError("is already running or waiting with this seed", "prompt", job.prompt)
            job.number = next(self._numbers)
            self._jobs = [*(other for other in self._jobs if other.name != job.name), job]
        if job.state == WAITING:
            self._worker.submit(self._work, job)

    def drop(self, number: int) -> None:
        """Stop the job `number` if it runs; a second call stops it at once. Remove a job that does not run."""
        with self._lock:
            for job in [job for job in self._jobs if job.number == number]:
                if job.state in LIVE:
                    job.state = STOPPING
                    self._signal()
                else:
                    self._jobs.remove(job)

    def close(self) -> None:
        """Start no further jobs, stop the running job and wait until it ends. Ctrl-C during the wait kills it."""
        with self._lock:
            self._closed = True
            self._signal()
        try:
            self._worker.shutdown()
        except KeyboardInterrupt:
            if self._process is not None:
                self._process.kill()
            raise

    def _signal(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)

    def _work(self, job: Job) -> None:
        with self._lock:
            if self._closed or job not in self._jobs:
                return
            try:
                self._process = process = _start(job.command)
                job.state = RUNNING
            except (OSError, ValueError) as error:  # for example a null byte in the prompt
                job.state, job.error = FAILED, in_a_line(error)
                return
        messages: deque[str] = deque(maxlen=20)
        assert process.stderr is not None
        for line in map(str.strip, process.stderr):
            if found := PROGRESS.fullmatch(line):
                job.progress = {**found.groupdict(), "details": found["details"] or ""}
            elif line:
                messages.append(line)
        code = process.wait()
        ending = f"the run was killed by signal {-code}" if code < 0 else f"the run exited with code {code}"
        with self._lock:
            self.over += 1
            if code in STOP_CODES or code == -signal.SIGINT:
                job.state = INTERRUPTED
            elif code:
                job.state, job.error = FAILED, messages[-1] if messages and code > 0 else ending
            else:
                job.state = FINISHED


def _start(command: list[str]) -> subprocess.Popen[str]:
    """Start a run in its own session, so that it receives Ctrl-C only from the queue and not from the terminal."""
    paths = [str(Path(threedgen.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=os.environ | PROGRESS_ENV | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        start_new_session=True,
    )
