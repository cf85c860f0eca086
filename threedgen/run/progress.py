"""What a person sees while a run goes on: one bar in a terminal, one line a minute elsewhere."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from threedgen.run.text import clean, duration, number

WINDOW = 30.0
"""Seconds from which the pace is taken, or as long as the last piece took."""
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
        """None before the second step."""
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
        """``count`` more are done; ``note``: what is being done now, on the bar."""
        self.show(self.done + count, note=note)

    def show(
        self, done: int, details: Callable[[], list[str]] | None = None, note: str = "", due: bool = False
    ) -> None:
        """``done`` are done. ``details``: what follows the numbers, else the time left; ``due``: a line is said now."""
        self.done, now = done, self.clock()
        self.speed.mark(now, done)
        if self._bar is not None:
            if details is None or now - self._drawn_at >= 0.25:  # reading the loss makes a GPU wait
                self._drawn_at = now
                self.note(note, ", ".join(details() if details else self._left()))
        elif due or now - self._said_at >= self._every or done >= self.total:
            self.say(details)

    def say(self, details: Callable[[], list[str]] | None = None) -> None:
        """Prints a line, unless there is a bar or quiet is asked for."""
        if self.quiet or self._bar is not None:
            return
        self._said_at = self.clock()
        line = clean(", ".join([f"{self.stage}: {self.done}/{self.total}", *(details() if details else self._left())]))
        self.console.print(line, markup=False, highlight=False, soft_wrap=True, emoji=False)

    def note(self, text: str, detail: str | None = None) -> None:
        """What is being done now, on the bar."""
        if self._bar is not None:
            fields: dict[str, Any] = {} if detail is None else {"detail": detail}
            description = clean(f"{self.stage} {text}")
            self._bar.update(self._bar.task_ids[0], completed=self.done, description=description, **fields)

    def _left(self) -> list[str]:
        pace, left = self.speed.seconds_a_step(), self.total - self.done
        return [f"{duration(pace * left)} left"] if pace and left > 0 else []


class Progress(pl.Callback):
    """Stage, done/total, step time, time left, loss and chosen metrics of a run, as a `Count` shows them.

    A line is also said at the start, at each quarter and when the stage changes. The module may say its `stage` (a
    text, may change) and, in a dictionary `metrics`, numbers to show, chosen by the names in `metrics` here.
    """

    def __init__(
        self,
        metrics: Iterable[str] = (),
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics, self.quiet, self.console, self.clock = tuple(metrics), quiet, console, clock
        self.count: Count | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stage, step = stage_of(pl_module), trainer.global_step
        quiet = self.quiet or not trainer.is_global_zero
        self.count = Count(stage, trainer.max_steps, quiet, self.console, step, self.clock)
        self.count.__enter__()
        if not step:
            self.count.say()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        count, step, total, stage = self.count, trainer.global_step, trainer.max_steps, stage_of(pl_module)
        if count is None or step == count.done:
            return
        due = stage != count.stage or (total > 0 and 4 * step // total > 4 * count.done // total)
        count.stage = stage
        count.show(
            step,
            lambda: details(count.speed.seconds_a_step(), total - step, pl_module, outputs, self.metrics),
            due=due,
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.count is not None:
            self.count.note("")
            self.count.__exit__()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.count is not None:
            self.count.__exit__()


def stage_of(module: pl.LightningModule) -> str:
    """What the module is doing, on one line."""
    return clean(str(getattr(module, "stage", "") or "training"))


def details(
    pace: float | None, left: int, module: pl.LightningModule, outputs: Any, metrics: Iterable[str] = ()
) -> list[str]:
    """Step time, time left, loss and chosen metrics in words; `pace`: seconds a step, `left`: steps to come."""
    parts = []
    if pace is not None:
        parts.append(f"{pace:.3g} s/step" if pace >= 1 else f"{1000 * pace:.3g} ms/step")
        if left > 0:
            parts.append(f"{duration(pace * left)} left")
    shown: dict[str, Any] = {"loss": outputs.get("loss") if isinstance(outputs, dict) else outputs}
    known: dict[str, Any] = getattr(module, "metrics", {})
    shown |= {name: known.get(name) for name in metrics}
    for name, value in shown.items():
        single = isinstance(value, torch.Tensor) and value.numel() == 1
        if single or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            parts.append(f"{clean(name)} {number(float(value))}")
    return parts
