"""Final status of a run and its exit code."""

import enum
from pathlib import Path

from threedgen.run.folder import steps_done
from threedgen.run.metrics import read_summary


class Status(enum.Enum):
    """Final status of a run, which decides the exit code and is written to summary.json.

    FINISHED: complete; INTERRUPTED: stopped by Ctrl-C; TERMINATED: stopped by SIGTERM; FAILED: the loss or a
    weight was not finite.
    """

    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # Ctrl-C once
    TERMINATED = "terminated"  # SIGTERM
    FAILED = "failed"  # the loss or a weight was not finite

    @property
    def exit_code(self) -> int:
        """Exit code of the process: 0 if finished, 130 if interrupted (SIGINT), 143 if terminated, 2 if failed."""
        return {"finished": 0, "interrupted": 130, "terminated": 143, "failed": 2}[self.value]

    @classmethod
    def of(cls, exit_code: object) -> "Status":
        return next(status for status in cls if status.exit_code == exit_code)


def finished(folder: Path, max_steps: int | None = None) -> bool:
    """Return whether a folder has a finished run of at least `max_steps` steps (None: any), with all result files.

    The status, the steps and the list of result files are read from summary.json.
    """
    summary = read_summary(folder)
    complete = summary.get("status") == Status.FINISHED.value and steps_done(folder) >= (max_steps or 0)
    files = summary.get("files", [])
    return complete and isinstance(files, list) and all((folder / str(name)).exists() for name in files)
