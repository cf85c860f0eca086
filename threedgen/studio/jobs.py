"""Prompts that wait to become objects: one run at a time, each a process of its own, as the command line would do it.

So the page outlives whatever ends a run, a run is stopped as by Ctrl-C, and goes on when it is asked for again.
"""

from __future__ import annotations

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
from typing import Any

import threedgen
from threedgen.config.errors import ConfigError, in_a_line
from threedgen.run.interrupts import STOPPED
from threedgen.systems.batch.jobs import job as run_job
from threedgen.systems.batch.jobs import words_of
from threedgen.viewer.record import read_record

from .options import StudioConfig

WAITING, RUNNING, STOPPING, FINISHED, INTERRUPTED, FAILED = (
    *("waiting", "running", "stopping", "finished", "interrupted", "failed"),
)
LIVE = (RUNNING, STOPPING)
PROGRESS = re.compile(r"(?P<phase>[^:]+): (?P<done>\d+)/(?P<total>\d+)(?:, (?P<details>.*))?")
"""A line of `threedgen.run.progress.Count`."""
SPEAKING = {"THREEDGEN_PROGRESS_SECONDS": "1", "CI": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
"""Environment of a run that says a line of progress every second."""
SHOWN = 12
"""Jobs that are over and still listed."""


@dataclass
class Job:
    """A prompt on its way. ``name``: of its run folder; ``command``: what makes it; ``progress``: its last line."""

    prompt: str
    seed: int
    name: str
    command: list[str]
    number: int = 0
    state: str = WAITING
    progress: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def ordered(config: StudioConfig, root: Path, prompt: str, seed: int) -> Job:
    """The job that makes an object of a prompt. Raises ConfigError for what would stop the run at its beginning."""
    run = config.run_config(prompt, seed=seed)
    run.check()
    name = run_job(config.config, run, prompt, run.seed).key
    method, *own = words_of(config.config)
    values = (*config.overrides, *own, f"prompt={prompt}", f"seed={run.seed}", f"out={root / name}")
    job = Job(prompt, run.seed, name, [sys.executable, "-m", "threedgen", "--config", method, *values])
    with suppress(ConfigError):  # there is no run yet
        job.state = FINISHED if read_record(root / name).state == FINISHED else WAITING
    return job


class Queue:
    """Jobs, and a thread that does them in their order.

    ``changed`` is notified whenever there is something new to show; ``over``: how many jobs have ended.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.over = 0
        self._jobs: list[Job] = []
        self._numbers = count(1)
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def jobs(self) -> list[Job]:
        """All that are listed, in the order in which they were asked for."""
        with self.changed:
            return list(self._jobs)

    def add(self, job: Job) -> None:
        """Raises ConfigError if the same one is there already and not over."""
        with self.changed:
            if any(one.name == job.name and one.state in (WAITING, *LIVE) for one in self._jobs):
                raise ConfigError("is being made already, or waits for it", "prompt", job.prompt)
            over = [one for one in self._jobs if one.state not in (WAITING, *LIVE)]
            gone = [*over[: max(0, len(over) - SHOWN)], *(one for one in over if one.name == job.name)]
            self._jobs = [one for one in self._jobs if one not in gone]
            job.number = next(self._numbers)
            self._jobs.append(job)
            self.changed.notify_all()

    def drop(self, number: int) -> None:
        """Stops a running job, as Ctrl-C does, the second time at once; any other one is taken from the list."""
        with self.changed:
            for job in [one for one in self._jobs if one.number == number]:
                if job.state in LIVE:
                    job.state = STOPPING
                    self._signal()
                else:
                    self._jobs.remove(job)
            self.changed.notify_all()

    def close(self) -> None:
        """Begins nothing more, stops what is running and waits for it; at Ctrl-C it is killed."""
        with self.changed:
            self._closed = True
            self._signal()
            self.changed.notify_all()
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
        """The first job that waits, when there is one; None when the queue is closed."""
        with self.changed:
            while True:
                if self._closed:
                    return None
                if waiting := [job for job in self._jobs if job.state == WAITING]:
                    job = waiting[0]
                    job.state, self._process = RUNNING, None
                    try:
                        self._process = _started(job.command)
                        return job
                    except (OSError, ValueError) as error:  # a prompt that no command line can hold
                        job.state, job.error = FAILED, in_a_line(error)
                    finally:
                        self.changed.notify_all()
                else:
                    self.changed.wait()

    def _work(self) -> None:
        while job := self._next():
            assert self._process is not None and self._process.stderr is not None
            said: deque[str] = deque(maxlen=20)
            for line in map(str.strip, self._process.stderr):
                if found := PROGRESS.fullmatch(line):
                    self._tell(job, progress={**found.groupdict(), "details": found["details"] or ""})
                elif line and not line.startswith("(set "):
                    said.append(line)
            code = self._process.wait()
            with self.changed:
                self.over += 1
            if code in STOPPED or code == -signal.SIGINT:
                self._tell(job, state=INTERRUPTED)
            elif code:
                ended = f"the run was ended by signal {-code}" if code < 0 else f"the run ended with code {code}"
                self._tell(job, state=FAILED, error=said[-1] if said and code > 0 else ended)
            else:
                self._tell(job, state=FINISHED)

    def _tell(self, job: Job, **news: Any) -> None:
        with self.changed:
            for name, value in news.items():
                setattr(job, name, value)
            self.changed.notify_all()


def _started(command: list[str]) -> subprocess.Popen[str]:
    """A run as a process of its own session: Ctrl-C in the studio's terminal reaches it through the queue alone."""
    places = [str(Path(threedgen.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=os.environ | SPEAKING | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
        start_new_session=True,
    )
