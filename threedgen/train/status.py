"""How a run ends."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

from threedgen.run.folder import steps_done
from threedgen.run.metrics import read_summary


class Status(enum.Enum):
    """How a run ended."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # Ctrl-C once
    TERMINATED = "terminated"  # SIGTERM
    FAILED = "failed"  # the loss was no longer a number

    @property
    def exit_code(self) -> int:
        """What the process should return; for a signal 128 + its number."""
        return {"finished": 0, "interrupted": 130, "terminated": 143, "failed": 2}[self.value]

    @classmethod
    def of(cls, exit_code: Any) -> Status:
        """Finds the status with this exit code."""
        return next(status for status in cls if status.exit_code == exit_code)


def finished(folder: Path, max_steps: int | None = None) -> bool:
    """Does the folder hold the results of a run, all of them, of as many steps as are asked for or more?"""
    summary = read_summary(folder)
    whole = summary.get("status") == Status.FINISHED.value and steps_done(folder) >= (max_steps or 0)
    files = summary.get("files", [])
    return whole and isinstance(files, list) and all((folder / str(name)).exists() for name in files)
