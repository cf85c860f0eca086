"""Progress display: a bar in a terminal, one line per minute elsewhere."""

import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from threedgen.run.text import clean, duration, say

WINDOW = 30.0  # seconds over which the step time is averaged; longer if a single step takes longer
MIN_SHARE = 0.03  # fraction of the steps that must be measured before the time left is shown
MIN_BAR_WIDTH = 8  # minimum width of the bar in characters
INTERVAL_VARIABLE = "THREEDGEN_PROGRESS_SECONDS"  # seconds between two lines without a bar; default 60


def silence_lightning() -> None:
    """Turn off Lightning's messages on devices, tips and progress, but not its warnings. Call before Trainer()."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        for logger_name in (name, f"{name}.utilities.rank_zero"):
            logging.getLogger(logger_name).setLevel(logging.WARNING)
    pytree = r"pytorch_lightning\.utilities\._pytree"
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", module=pytree)
    warnings.filterwarnings("ignore", message=r"Starting from v1\.9\.0, `tensorboardX` has been removed.*")


class Speed:
    """Stopwatch for the time per step, averaged over the last 30 seconds (WINDOW), or over one step if it is longer.

    Call `mark` before the first and after each step. `seconds_per_step` then returns the average in seconds, and `left`
    the time left as text.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()
        self._first = (0.0, 0)  # mark before the first step
        self._warm: tuple[float, int] | None = None  # mark after the first step, which compiles kernels

    def mark(self, now: float, step: int) -> None:
        """Record that `step` steps are done at the time `now`, in seconds since any fixed moment."""
        if self._warm is None and self._marks and step > self._marks[0][1]:
            self._first, self._warm = self._marks[0], (now, step)
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW:
            self._marks.popleft()

    def seconds_per_step(self) -> float | None:
        """Return the average time per step in seconds; None until `mark` has been called for two different steps."""
        if len(self._marks) < 2:
            return None
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (end - start) / (last - first) if last > first else None

    def left(self, total: int) -> list[str]:
        """Return a list with the time until step `total`, such as ["6 s left"]; [] at the end or while it is unknown.

        The time follows from the average time per step. It is known after 30 seconds of steps (WINDOW), or earlier
        after 3 % of all steps (MIN_SHARE), at least 2. The steps that `mark` reports first do not count for this,
        because they compile kernels and are slow. They count only if they took at least 30 seconds and are at least 3 %
        of all steps.
        """
        if self._warm is None:
            return []
        (now, step), warm = self._marks[-1], self._warm
        if warm[0] - self._first[0] >= WINDOW and warm[1] - self._first[1] >= MIN_SHARE * total:
            warm = self._first
        elapsed, measured = now - warm[0], step - warm[1]
        enough = elapsed >= WINDOW or measured >= max(2, MIN_SHARE * total)
        if step >= total or measured < 1 or not enough:
            return []
        start, first = max(self._marks[0], warm)
        if step == first:  # the last step alone took longer than WINDOW
            start, first = warm
        return [f"{duration((now - start) / (step - first) * (total - step))} left"]


class ProgressDisplay:
    """Progress display on stderr: a bar in a terminal, else a line each minute.

    If the environment variable CI is set, lines are printed in a terminal too. Use it as a context:

        with ProgressDisplay("sampling", 200) as display:
            display.add(8)  # 8 more steps are done

    Args:
        stage: text in front of the numbers, such as "sampling".
        total: number of steps.
        quiet: show nothing.
        console: terminal for the output; None: stderr.
        done: number of steps that an earlier process has done; they do not count for the time per step.
        clock: function that returns the time in seconds.
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
        self._printed_at = self._updated_at = float("-inf")
        self._interval = float(os.environ.get(INTERVAL_VARIABLE) or 60)

    @property
    def shows_bar(self) -> bool:
        return self._bar is not None

    def __enter__(self) -> "ProgressDisplay":
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
        """Add `count` to the number of steps that are done, and update the display.

        `note` is the current activity, which the bar shows after its title. Without a bar it is not shown.
        """
        self.show(self.done + count, note=note)

    def show(
        self, done: int, details: Callable[[], list[str]] | None = None, note: str = "", due: bool = False
    ) -> None:
        """Set the number of steps done and update the display.

        Args:
            done: number of steps done.
            details: function that returns texts to show after the number of steps, such as the loss; None: show the
                time left.
            note: current activity, which the bar shows after its title. Without a bar it is not shown.
            due: without a bar, print a line now, even if the last line is less than a minute old.
        """
        self.done, now = done, self.clock()
        self.speed.mark(now, done)
        if self._bar is not None:
            if details is None or now - self._updated_at >= 0.25:  # reading the loss synchronises the GPU
                self._updated_at = now
                self.note(note, details() if details else self.left())
        elif due or now - self._printed_at >= self._interval or done >= self.total:
            self.say(details)

    def say(self, details: Callable[[], list[str]] | None = None) -> None:
        """Print the progress as a line, unless there is a bar or `quiet` is set.

        `details` is a function that returns texts to print after the number of steps, such as the loss; None: the time
        left is printed.
        """
        if self.quiet or self._bar is not None:
            return
        self._printed_at = self.clock()
        line = ", ".join([f"{self.stage}: {self.done}/{self.total}", *(details() if details else self.left())])
        say(clean(line), self.console.file)

    def note(self, text: str, details: list[str] | None = None) -> None:
        """Show the current activity `text` on the bar; without a bar, do nothing.

        `details` are texts at the end of the bar, such as the loss; the last ones are left out if the terminal is too
        narrow. None: the texts that the bar shows stay.
        """
        if self._bar is not None:
            description = clean(f"{self.stage} {text}")
            task = self._bar.task_ids[0]
            self._bar.update(task, total=self.total, completed=self.done, description=description)
            if details is not None:
                room = self.console.width - len(description) - 2 * len(str(self.total)) - MIN_BAR_WIDTH - 4
                starts = [", ".join(details[: k + 1]) for k in range(len(details))]
                self._bar.update(task, detail=max((text for text in starts if len(text) <= room), key=len, default=""))

    def left(self) -> list[str]:
        """Return a list with the time left, such as ["6 s left"]; [] at the end or while it is unknown."""
        return self.speed.left(self.total)
