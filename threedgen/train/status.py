"""How a run ends."""

from __future__ import annotations

import enum
from typing import Any


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
