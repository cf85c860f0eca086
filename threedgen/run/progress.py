"""What a person sees while a run goes on: one bar in a terminal, one line a minute elsewhere."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from threedgen.run.text import clean, duration, number

WINDOW = 600
"""Seconds from which the pace of a Count is taken: pieces may last minutes."""
_CHATTY = (
    "pytorch_lightning",
    "pytorch_lightning.utilities.rank_zero",
    "lightning_fabric",
    "lightning_fabric.utilities.rank_zero",
)


def silence_lightning() -> None:
    """Turns off Lightning's notes on devices, tips and progress, not its warnings. Call before Trainer()."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore",
        message=r".*isinstance\(treespec, LeafSpec\).*",
        module=r"pytorch_lightning\.utilities\._pytree",
    )
    warnings.filterwarnings("ignore", message=r"Starting from v1\.9\.0, `tensorboardX` has been removed.*")


class Speed:
    """Seconds a step takes, from the last `window` seconds only: a change of resolution changes it."""

    def __init__(self, window: float = 30.0) -> None:
        self.window = window
        self._marks: deque[tuple[float, int]] = deque()

    def mark(self, now: float, step: int) -> None:
        """Notes that `step` steps were done at the time `now`, in seconds."""
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] >= self.window:
            self._marks.popleft()

    def mark_now(self, step: int) -> None:
        """The same, by the clock."""
        self.mark(time.monotonic(), step)

    def seconds_a_step(self) -> float | None:
        """None before the second step."""
        if len(self._marks) < 2:
            return None
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (end - start) / (last - first) if last > first else None


class Progress(pl.Callback):
    """Stage, done/total, step time, time left, loss and chosen metrics of a run, on stderr.

    In a terminal a bar; into a file, or with CI set, a plain line at the start, every `every` seconds, at
    each quarter, when the stage changes and at the end; nothing if `quiet`. The module may say its `stage` (a
    text, may change) and, in a dictionary `metrics`, numbers to show, chosen by the names in `metrics` here.
    """

    def __init__(
        self,
        stage: str = "",
        metrics: Iterable[str] = (),
        quiet: bool = False,
        console: Console | None = None,
        every: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage, self.metrics, self.quiet = stage, tuple(metrics), quiet
        self.every, self.clock = every, clock
        self.console = console or Console(stderr=True)
        self.speed = Speed()
        self._bar: Bar | None = None
        self._said_at = self._drawn_at = float("-inf")
        self._said_stage = ""
        self._step = 0

    @property
    def as_bar(self) -> bool:
        """Is there a person in front of a terminal?"""
        return self.console.is_terminal and not os.environ.get("CI")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step
        self.speed = Speed()
        self.speed.mark(self.clock(), self._step)
        if self.quiet or not trainer.is_global_zero:
            return
        if self.as_bar:
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                console=self.console,
                expand=True,
            )
            stage = self._stage(pl_module)
            self._bar.add_task(stage, total=trainer.max_steps, completed=self._step, detail="")
            self._bar.start()
        else:
            self._say(self._line(trainer, pl_module, None))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        before, self._step, now = self._step, trainer.global_step, self.clock()
        if self._step == before:
            return
        self.speed.mark(now, self._step)
        if self.quiet or not trainer.is_global_zero:
            return
        if self._bar is not None:
            if now - self._drawn_at >= 0.25:  # reading the loss makes a GPU wait
                self._drawn_at = now
                self._draw(trainer, pl_module, outputs)
        elif self._is_due(now, before, trainer.max_steps, self._stage(pl_module)):
            self._say(self._line(trainer, pl_module, outputs))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._bar is not None:
            self._draw(trainer, pl_module, None)
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _stage(self, module: pl.LightningModule) -> str:
        return stage_of(module, self.stage)

    def _is_due(self, now: float, before: int, total: int, stage: str) -> bool:
        quarter = total > 0 and 4 * self._step // total > 4 * before // total
        return quarter or stage != self._said_stage or now - self._said_at >= self.every

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any) -> None:
        if self._bar is None:
            return
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=self._step, description=self._stage(module))
        if outputs is not None:
            self._bar.update(task, detail=", ".join(self._details(trainer, module, outputs)))

    def _line(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any) -> str:
        self._said_stage = self._stage(module)
        done = f"{self._said_stage}: {self._step}/{trainer.max_steps}"
        return ", ".join([done, *self._details(trainer, module, outputs)])

    def _details(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any) -> list[str]:
        left = trainer.max_steps - self._step
        return details(self.speed.seconds_a_step(), left, module, outputs, self.metrics)

    def _say(self, line: str) -> None:
        self._said_at = self.clock()
        self.console.print(line, markup=False, highlight=False, soft_wrap=True, emoji=False)


def stage_of(module: pl.LightningModule, otherwise: str = "") -> str:
    """What the module is doing, on one line."""
    return clean(str(getattr(module, "stage", "") or otherwise or "training"))


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
    numbers = {name: value for name, value in shown.items() if _is_number(value)}
    return parts + [f"{clean(name)} {number(float(value))}" for name, value in numbers.items()]


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
