"""Progress of work that is a number of equal pieces: objects sampled, scenes fitted, folders written."""

from __future__ import annotations

import os
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from threedgen.run.progress import Speed
from threedgen.run.text import clean, duration

WINDOW = 600
"""Seconds from which the pace is taken: pieces may last minutes."""


class Count:
    """A bar in a terminal, a line a minute elsewhere, nothing if ``quiet``; on stderr.

    with Count("sampling", 200, quiet) as count:
        count.add(8)

    ``done``: pieces that an earlier run left, which say nothing about the time that the others need.
    """

    def __init__(
        self, stage: str, total: int, quiet: bool = False, console: Console | None = None, done: int = 0
    ) -> None:
        self.stage, self.total, self.quiet, self.done = stage, total, quiet, done
        self.console = console or Console(stderr=True)
        self.speed = Speed(window=WINDOW)
        self._bar: Bar | None = None
        self._said_at = float("-inf")

    def __enter__(self) -> Count:
        self.speed.mark_now(self.done)
        if not self.quiet and self.console.is_terminal and not os.environ.get("CI"):
            columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), MofNCompleteColumn())
            self._bar = Bar(
                *columns, TimeRemainingColumn(), console=self.console, expand=True, speed_estimate_period=WINDOW
            )
            self._bar.add_task(self.stage, total=self.total, completed=self.done)
            self._bar.start()
        elif not self.quiet and self.done:
            self._say("")
        return self

    def add(self, count: int, note: str = "") -> None:
        """``count`` more are done."""
        self.done += count
        self.speed.mark_now(self.done)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, description=clean(f"{self.stage} {note}"))
        elif not self.quiet and (time.monotonic() - self._said_at >= 60 or self.done >= self.total):
            pace = self.speed.seconds_a_step()
            self._say(f", {duration(pace * (self.total - self.done))} left" if pace and self.done < self.total else "")

    def _say(self, left: str) -> None:
        self._said_at = time.monotonic()
        line = clean(f"{self.stage}: {self.done}/{self.total}{left}")
        self.console.print(line, markup=False, highlight=False, emoji=False)

    def note(self, text: str) -> None:
        """What is being done now, on the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=clean(f"{self.stage} {text}"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
