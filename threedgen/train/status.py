"""Final status of a run and its exit code."""

import enum


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
