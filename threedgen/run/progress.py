"""What a person sees while a run goes on: one bar in a terminal, one line a minute elsewhere."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from threedgen.run.text import clean, duration

WINDOW = 30.0
"""Seconds from which the pace is taken, or as long as the last piece took."""
SHORTEST_BAR = 8
"""Characters of a bar; what follows it has the rest of the line."""
EVERY = "THREEDGEN_PROGRESS_SECONDS"
"""Environment variable: seconds between two lines where there is no bar, 60 without it."""


def silence_lightning() -> None:
    """Turns off Lightning's notes on devices, tips and progress, not its warnings. Call before Trainer()."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        for chatty in (name, f"{name}.utilities.rank_zero"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
    pytree = r"pytorch_lightning\.utilities\._pytree"
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", module=pytree)
    warnings.filterwarnings("ignore", message=r"Starting from v1\.9\.0, `tensorboardX` has been removed.*")


class Speed:
    """Seconds a step takes, from the last `WINDOW` seconds only: a change of resolution changes it."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, now: float, step: int) -> None:
        """Notes that `step` steps were done at the time `now`, in seconds."""
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW:
            self._marks.popleft()

    def seconds_a_step(self) -> float | None:
        """Measures the pace; None before the second step."""
        if len(self._marks) < 2:
            return None
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (end - start) / (last - first) if last > first else None


class Count:
    """How far some work is, on stderr: a bar in a terminal; into a file, or with CI set, a line of text now and then.

    with Count("sampling", 200, quiet) as count:
        count.add(8)

    A line is said a minute (or what `EVERY` says) after the last one, at the end, and when the caller asks for it.
    ``done``: pieces that an earlier run left, which say nothing about the time that the others need.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        quiet: bool = False,
        console: Console | None = None,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage, self.total, self.quiet, self.done = stage, total, quiet, done
        self.console, self.clock = console or Console(stderr=True), clock
        self.speed = Speed()
        self.speed.mark(clock(), done)
        self._bar: Bar | None = None
        self._said_at = self._drawn_at = float("-inf")
        self._every = float(os.environ.get(EVERY) or 60)

    @property
    def shows_bar(self) -> bool:
        """Is there a bar, in a terminal?"""
        return self._bar is not None

    def __enter__(self) -> Count:
        if not self.quiet and self.console.is_terminal and not os.environ.get("CI"):
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                console=self.console,
                expand=True,
            )
            self._bar.add_task(clean(self.stage), total=self.total, completed=self.done, detail="")
            self._bar.start()
        elif self.done:
            self.say()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def add(self, count: int, note: str = "") -> None:
        """Counts ``count`` more as done; ``note``: what is being done now, on the bar."""
        self.show(self.done + count, note=note)

    def show(
        self, done: int, details: Callable[[], list[str]] | None = None, note: str = "", due: bool = False
    ) -> None:
        """Shows ``done`` as done. ``details``: what follows the numbers, else the time left; ``due``: print it now."""
        self.done, now = done, self.clock()
        self.speed.mark(now, done)
        if self._bar is not None:
            if details is None or now - self._drawn_at >= 0.25:  # reading the loss makes a GPU wait
                self._drawn_at = now
                self.note(note, details() if details else self.left())
        elif due or now - self._said_at >= self._every or done >= self.total:
            self.say(details)

    def say(self, details: Callable[[], list[str]] | None = None) -> None:
        """Prints a line, unless there is a bar or quiet is asked for."""
        if self.quiet or self._bar is not None:
            return
        self._said_at = self.clock()
        line = clean(", ".join([f"{self.stage}: {self.done}/{self.total}", *(details() if details else self.left())]))
        self.console.print(line, markup=False, highlight=False, soft_wrap=True, emoji=False)

    def note(self, text: str, details: list[str] | None = None) -> None:
        """Shows on the bar what is being done now, and as many of the details as its line has room for."""
        if self._bar is not None:
            description = clean(f"{self.stage} {text}")
            fields: dict[str, Any] = {} if details is None else {"detail": self._fitting(description, details)}
            whole: Any = {"total": self.total, "completed": self.done}
            self._bar.update(self._bar.task_ids[0], **whole, description=description, **fields)

    def _fitting(self, description: str, details: list[str]) -> str:
        """Joins the first of the details, as far as they leave a bar between the description and "done/total"."""
        room = self.console.width - len(description) - 2 * len(str(self.total)) - SHORTEST_BAR - 4
        return ", ".join(part for k, part in enumerate(details) if len(", ".join(details[: k + 1])) <= room)

    def left(self) -> list[str]:
        """Words the time left, as soon as it can be told."""
        pace, left = self.speed.seconds_a_step(), self.total - self.done
        return [f"{duration(pace * left)} left"] if pace and left > 0 else []
