"""What a person sees while a system is trained: stage, steps, pace, loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console

from threedgen.run.progress import Count
from threedgen.run.text import clean, duration, number


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
        module: Any = pl_module
        module.counted = partial(self.within, trainer, module)
        count = self._begin(trainer, module)
        if not trainer.global_step:
            count.say()

    def _begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> Count:
        quiet, step = self.quiet or not trainer.is_global_zero, trainer.global_step
        self.count = Count(stage_of(module), trainer.max_steps, quiet, self.console, step, self.clock)
        return self.count.__enter__()

    @contextmanager
    def within(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str, total: int) -> Iterator[Count]:
        """Counts something else in the middle of a step; then the steps, whose pace is taken anew."""
        if self.count is not None:
            self.count.__exit__()
        quiet = self.quiet or not trainer.is_global_zero
        with Count(stage, total, quiet, self.console, clock=self.clock) as count:
            yield count
        self._begin(trainer, module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        """A step may take long: the bar says what it does while it goes on."""
        if self.count is not None and self.count.shows_bar:
            self.count.stage = stage_of(pl_module)
            self.count.note("")

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
    """Step time, time left, loss and chosen metrics in words; `pace`: seconds a step, `left`: steps to come.

    Of a loss that has terms the first is shown by its name, as that of another stage is of another size.
    """
    parts = []
    if pace is not None:
        parts.append(f"{pace:.3g} s/step" if pace >= 1 else f"{1000 * pace:.3g} ms/step")
        if left > 0:
            parts.append(f"{duration(pace * left)} left")
    terms: dict[str, Any] = getattr(module, "terms", {})
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    shown: dict[str, Any] = dict([next(iter(terms.items()), ("loss", loss))])
    known: dict[str, Any] = getattr(module, "metrics", {})
    shown |= {name: known.get(name) for name in metrics}
    for name, value in shown.items():
        single = isinstance(value, torch.Tensor) and value.numel() == 1
        if single or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            parts.append(f"{clean(name)} {number(float(value))}")
    return parts
