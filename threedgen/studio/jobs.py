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
    """Run of one prompt in the queue.

    `name` is the run's folder below the studio's folder, `command` its command line, and `progress` the fields of its
    last progress line (the groups of PROGRESS). `number` identifies the job in requests.
    """

    prompt: str
    seed: int
    name: str
    command: list[str]
    number: int = 0
    state: str = WAITING
    progress: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


def make_job(config: StudioConfig, root: Path, prompt: str, seed: int) -> Job:
    """Return the job for a prompt, finished if its run already exists in the folder `root` and is finished.

    Raises ConfigError if the run config is invalid for this prompt.
    """
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
    """List of jobs, and a worker thread that runs them one after another in the order of submission.

    `over` is the number of runs that have ended.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.over = 0
        self._jobs: list[Job] = []
        self._numbers = count(1)
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def jobs(self) -> list[Job]:
        """Return a copy of the list of jobs, in the order of submission."""
        with self._changed:
            return list(self._jobs)

    def add(self, job: Job) -> None:
        """Append a job to the list instead of an ended one with the same name.

        Raises ConfigError if a job with the same name is waiting or running.
        """
        with self._changed:
            if any(other.name == job.name and other.state in (WAITING, *LIVE) for other in self._jobs):
                raise ConfigError("is already running or waiting with this seed", "prompt", job.prompt)
            job.number = next(self._numbers)
            self._jobs = [*(other for other in self._jobs if other.name != job.name), job]
            self._changed.notify_all()

    def drop(self, number: int) -> None:
        """Stop the job `number` if it runs; a second call stops it at once. Remove a job in another state."""
        with self._changed:
            for job in [job for job in self._jobs if job.number == number]:
                if job.state in LIVE:
                    job.state = STOPPING
                    self._signal()
                else:
                    self._jobs.remove(job)

    def close(self) -> None:
        """Start no further jobs, stop the running job and wait until it ends. Ctrl-C during the wait kills it."""
        with self._changed:
            self._closed = True
            self._signal()
            self._changed.notify_all()
        try:
            self._thread.join()
        except KeyboardInterrupt:
            if self._process is not None:
                self._process.kill()
            raise

    def _signal(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)

    def _next(self) -> Job | None:
        """Block until the list has a waiting job, start it and return it; return None once the queue is closed."""
        with self._changed:
            while not self._closed:
                job = next((job for job in self._jobs if job.state == WAITING), None)
                if job is None:
                    self._changed.wait()
                    continue
                try:
                    self._process, job.state = _start(job.command), RUNNING
                    return job
                except (OSError, ValueError) as error:  # for example a null byte in the prompt
                    job.state, job.error = FAILED, in_a_line(error)
            return None

    def _work(self) -> None:
        while job := self._next():
            assert self._process is not None and self._process.stderr is not None
            messages: deque[str] = deque(maxlen=20)
            for line in map(str.strip, self._process.stderr):
                if found := PROGRESS.fullmatch(line):
                    job.progress = {**found.groupdict(), "details": found["details"] or ""}
                elif line:
                    messages.append(line)
            code = self._process.wait()
            ending = f"the run was killed by signal {-code}" if code < 0 else f"the run exited with code {code}"
            with self._changed:
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
