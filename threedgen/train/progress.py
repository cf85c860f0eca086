"""Progress display of a training: current activity such as "training", steps, time per step and left, loss, metrics."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.types import STEP_OUTPUT
from rich.console import Console

from threedgen.run.disk import Tree
from threedgen.run.progress import ProgressDisplay, Speed
from threedgen.run.text import clean, number
from threedgen.train.callbacks import with_whole_loss


class Progress(Callback):
    """Callback that shows `module.stage`, steps, step time, time left, loss and the chosen `metrics` of the module.

    `module.stage` is a text such as "training", and `metrics` are names in `module.metrics`. In a terminal a bar shows
    all this; elsewhere a line is printed each minute, at the start, after each quarter of the steps, and when
    `module.stage` changes.
    """

    def __init__(
        self,
        metrics: Iterable[str] = (),
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics, self.quiet, self.console, self.clock = tuple(metrics), quiet, console, clock
        self.display: ProgressDisplay | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        module.track_progress = partial(self.track, trainer, module)
        display = self._start(trainer, module)
        if not trainer.global_step:
            display.say()

    def _start(self, trainer: Trainer, module: LightningModule) -> ProgressDisplay:
        quiet, step = self.quiet or not trainer.is_global_zero, trainer.global_step
        self.display = ProgressDisplay(stage_of(module), trainer.max_steps, quiet, self.console, step, self.clock)
        return self.display.__enter__()

    @contextmanager
    def track(self, trainer: Trainer, module: LightningModule, stage: str, total: int) -> Iterator[ProgressDisplay]:
        """Return a context with its own progress display, for a computation of `total` steps inside a training step.

        The context's value is this display, with the label `stage`; the caller updates it. On exit the display of the
        training is shown again, and its time per step is measured anew.
        """
        if self.display is not None:
            self.display.__exit__()
        quiet = self.quiet or not trainer.is_global_zero
        with ProgressDisplay(stage, total, quiet, self.console, clock=self.clock) as display:
            yield display
        self._start(trainer, module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: object) -> None:
        if self.display is not None and self.display.shows_bar:
            self.display.stage = stage_of(pl_module)
            self.display.note("")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        display, step, total, stage = self.display, trainer.global_step, trainer.max_steps, stage_of(pl_module)
        if display is None or step == display.done:
            return
        due = stage != display.stage or (total > 0 and 4 * step // total > 4 * display.done // total)
        display.stage = stage

        def texts() -> list[str]:
            return details(display.speed, total, pl_module, with_whole_loss(trainer, outputs), self.metrics)

        display.show(step, texts, due=due)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.display is not None:
            self.display.note("")
            self.display.__exit__()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.display is not None:
            self.display.__exit__()


def stage_of(module: LightningModule) -> str:
    """Return `module.stage` on one line, a text for the progress display; "training" if it is missing or empty."""
    return clean(str(getattr(module, "stage", "") or "training"))


def details(
    speed: Speed, total: int, module: LightningModule, outputs: STEP_OUTPUT, metrics: Iterable[str] = ()
) -> list[str]:
    """Return texts for the progress display: step time, time left, loss, and the values in `module.metrics`.

    `speed` has measured the time per step, `total` is the number of steps of the run, `outputs` is the result of the
    training step (the loss, or a dict with the key "loss"), and `metrics` are the names of the values to show. If
    `module.terms` (terms of the loss by name) is not empty, its first term is shown instead of the loss.
    """
    parts, step_seconds = [], speed.seconds_per_step()
    if step_seconds is not None:
        parts.append(f"{step_seconds:.3g} s/step" if step_seconds >= 1 else f"{1000 * step_seconds:.3g} ms/step")
    parts += speed.left(total)
    terms: dict[str, float] = getattr(module, "terms", {})
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    first = next(iter(terms), None)
    shown: Tree = {"loss": loss} if first is None else {first: terms[first]}
    values: dict[str, float] = getattr(module, "metrics", {})
    shown |= {name: values.get(name) for name in metrics}
    for name, value in shown.items():
        single = isinstance(value, torch.Tensor) and value.numel() == 1
        if single or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            parts.append(f"{clean(name)} {number(float(value))}")
    return parts
