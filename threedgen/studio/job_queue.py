"""Job queue of the studio. It starts one run at a time, as a process with the command line of a normal run.

The page stays available if a run crashes. A cancelled run keeps its last checkpoint, and resumes from it if the user
submits the same prompt again.
"""

import os
import re
import signal
import subprocess
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import threedgen
from threedgen.config.errors import ConfigError, one_line
from threedgen.run.disk import write_json
from threedgen.run.folder import CHECKPOINTS
from threedgen.run.interrupts import WATCH_STDIN

from .jobs import CANCELLED, FAILED, FINISHED, FINISHING, LIVE, RUNNING, STOPPING, WAITING, Job

LAST_NUMBER = ".last_job_number"  # file in the folder of the runs, with the number of the last job
KILL_SECONDS = 1.5  # seconds that a cancelled run has to save a checkpoint before it is killed
PROGRESS = re.compile(r"(?P<phase>[^:]+(?:: [^:]+)?): (?P<done>\d+)/(?P<total>\d+)(?:, (?P<details>.*))?")
"""Pattern of the progress lines that `run.progress.ProgressDisplay` prints, such as "train: 3/100, loss 0.1"."""
PROGRESS_ENV = {"THREEDGEN_PROGRESS_SECONDS": "1", "CI": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
"""Environment variables that make a run print a progress line every second."""


class Conflict(ConfigError):
    """Error for a request that the state of a job does not allow, such as removing a running job."""


class Queue:
    """Job queue of the studio, with a worker thread that runs one job at a time. The runs are in the folder `root`.

    The attribute `runs_version` is a counter that increases when a run has ended or was deleted. The API sends it to
    clients, which load the list of runs again when it changes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs_version = 0
        self._jobs: list[Job] = []
        self._last_number = 0
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1)

    def jobs(self) -> list[Job]:
        with self._lock:
            return list(self._jobs)

    def find(self, number: int) -> Job | None:
        return next((job for job in self.jobs() if job.number == number), None)

    def add(self, job: Job) -> None:
        """Append a job to the queue. An ended job with the same name (path of the run folder) is removed from it.

        A job in the state "waiting" is started when it is its turn; one in the state "finished" is only listed. Raises
        ConfigError if a job with the same name waits or runs.
        """
        with self._lock:
            if any(other.name == job.name and other.state in (WAITING, *LIVE) for other in self._jobs):
                raise ConfigError("is already running or waiting with this seed", "prompt", job.prompt)
            job.number = self._next_number()
            self._jobs = [*(other for other in self._jobs if other.name != job.name), job]
        if job.state == WAITING:
            self._worker.submit(self._work, job)

    def _next_number(self) -> int:
        # kept in a file: pages and scripts that stay open use the old numbers after a restart of the studio
        path = self.root / LAST_NUMBER
        with suppress(OSError, ValueError):
            self._last_number = max(self._last_number, int(path.read_text("utf-8")))
        self._last_number += 1
        with suppress(OSError):  # a disk that cannot be written: the run reports it
            write_json(path, self._last_number)
        return self._last_number

    def cancel(self, job: Job) -> None:
        """Cancel a waiting job, or end a running one within two seconds. Ended jobs do not change.

        A run saves a checkpoint before it ends. It is killed if this takes more than 1.5 s (KILL_SECONDS).
        """
        with self._lock:
            if job.state == WAITING:
                job.state = CANCELLED
            elif job.state in LIVE:
                job.state, job.finish = STOPPING, False
                self._terminate(kill=True)

    def finish(self, job: Job) -> None:
        """Make the run of an unfinished job export its object as it is now, without further training. Return at once.

        - Running job: its training stops after the current step, and the object is exported.
        - Cancelled or failed job: it is put into the queue again. At its turn it exports the object of its last
          checkpoint.

        Raises Conflict for jobs in other states, and if the run has no object to export yet (`can_finish`).
        """
        with self._lock:
            if not self.can_finish(job):
                raise Conflict("this run has no object yet to make an asset of")
            if job.state == RUNNING:
                job.state, job.finish = FINISHING, True
                self._terminate()
            else:
                self._start_again(job, finish=True)

    def can_finish(self, job: Job) -> bool:
        """Return whether the unfinished run of a job has an object that can be exported.

        A running job has an object if its run has a checkpoint or has logged metrics. A cancelled or failed job has one
        if its run has a checkpoint. The result is False for a job that exports a finished run again.
        """
        if job.task == "export":
            return False
        folder = self.root / job.name
        has_checkpoint = any((folder / CHECKPOINTS).glob("*.ckpt"))
        if job.state == RUNNING:
            return has_checkpoint or (folder / "metrics.jsonl").exists()
        return job.state in (CANCELLED, FAILED) and has_checkpoint

    def resume(self, job: Job) -> None:
        with self._lock:
            if job.state not in (CANCELLED, FAILED):
                raise Conflict("this job was not cancelled and has not failed")
            self._start_again(job, finish=False)

    def _start_again(self, job: Job, finish: bool) -> None:
        job.state, job.finish, job.error, job.has_result = WAITING, finish, "", None
        self._worker.submit(self._work, job)

    def remove(self, job: Job) -> None:
        """Remove a waiting or ended job from the queue. Raises Conflict if the job is running."""
        with self._lock:
            if job.state in LIVE:
                raise Conflict("this job is running. Cancel it first")
            self._jobs = [other for other in self._jobs if other is not job]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for job in self._jobs:
                if job.state in LIVE:
                    job.state, job.finish = STOPPING, False
            self._terminate(kill=True)
        self._worker.shutdown()

    def _terminate(self, kill: bool = False) -> None:
        # ends the current run; SIGCONT wakes a suspended process; `kill`: kill it and its children after KILL_SECONDS
        process = self._process
        if process is None or process.poll() is not None:
            return
        if os.name == "posix":
            process.terminate()
            process.send_signal(signal.SIGCONT)
        elif process.stdin is not None:
            process.stdin.close()  # see `end_with_parent`; on Windows, terminate() ends a process without a checkpoint
        if kill:
            timer = threading.Timer(KILL_SECONDS, _kill, [process])
            timer.daemon = True
            timer.start()

    def _work(self, job: Job) -> None:
        if job.state != WAITING:  # cancelled, or made by an earlier call: cancelled and continued while it waited
            return
        messages: deque[str] = deque(maxlen=20)
        stopped_before = job.finish
        code = self._run(job, job.command + ["--finish"] * stopped_before, messages)
        if code and job.finish and not stopped_before:
            code = self._run(job, [*job.command, "--finish"], messages)
        with self._lock:
            if code is None:
                return
            self.runs_version += 1
            ending = f"the run was killed by signal {-code}" if code < 0 else f"the run exited with code {code}"
            if job.state == STOPPING and code:
                job.state = CANCELLED
            elif code:
                job.state, job.error = FAILED, messages[-1] if messages and code > 0 else ending
            else:
                job.state = FINISHED

    def _run(self, job: Job, command: list[str], messages: deque[str]) -> int | None:
        # exit code, or None if the command was not started
        with self._lock:
            if self._closed or job not in self._jobs or job.state in (STOPPING, CANCELLED):
                job.state = CANCELLED
                return None
            try:
                self._process = process = start_process(command)
            except (OSError, ValueError) as error:  # for example a null byte in the prompt
                job.state, job.error = FAILED, one_line(error)
                return None
            job.state = FINISHING if job.finish else RUNNING
        messages.clear()
        assert process.stderr is not None
        for line in map(str.strip, process.stderr):
            if found := PROGRESS.fullmatch(line):
                job.progress = {**found.groupdict(), "details": found["details"] or ""}
            elif line:
                messages.append(line)
        return process.wait()


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    with suppress(ProcessLookupError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)  # the process leads its own group
        else:
            process.kill()


def start_process(command: list[str]) -> subprocess.Popen[str]:
    """Start a command in its own session, so that it receives Ctrl-C from the queue and not from the terminal."""
    paths = [str(Path(threedgen.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # closes when this process dies, even by SIGKILL, and the run then ends
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=os.environ | PROGRESS_ENV | {WATCH_STDIN: "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        start_new_session=True,
    )
