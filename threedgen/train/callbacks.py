"""What happens around each step of a run: seeds before it; a check of the numbers, pictures and metrics after it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from threedgen.run import seeding
from threedgen.run.interrupts import Interrupts
from threedgen.run.metrics import Metrics
from threedgen.run.progress import Speed

logger = logging.getLogger(__name__)
PATIENCE = 10
_REPORTED = 3  # so many skipped steps are reported one by one


def anywhere(trainer: pl.Trainer, flag: bool) -> bool:
    """Is `flag` true on any device? All of them get the same answer; one device alone waits for nothing."""
    return trainer.strategy.reduce_boolean_decision(flag, all=False) if trainer.world_size > 1 else flag


class StepCallback(pl.Callback):
    """Calls `after_step(trainer, module, outputs)` at the end of an optimisation step, which may take several batches.

    `steps`: done so far. Nobody can go on from the middle of a step.
    """

    steps = 0
    _step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        whole, self._step = trainer.global_step != self._step, trainer.global_step
        if whole:
            self.steps += 1
            self.after_step(trainer, pl_module, outputs)

    def after_step(self, trainer: pl.Trainer, module: Any, outputs: Any) -> None:
        raise NotImplementedError


class Seeding(pl.Callback):
    """Seeds the global generators of torch, numpy and python from (seed, batch, rank) before each batch.

    For what draws from them (dropout, libraries); our own code asks threedgen.run.seeding by purpose. numba has
    generators of its own that this does not reach: kernels are given their random numbers.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: int, batch_idx: int
    ) -> None:
        key = seeding.key(self.seed, batch, "global generators", trainer.global_rank)
        torch.manual_seed(key)
        np.random.seed(key % 2**32)
        random.seed(key)


class StopOnInterrupt(StepCallback):
    """Ends the run after the present step, all of its batches, once Ctrl-C or SIGTERM came on any device.

    Takes the place of Lightning's handler of SIGTERM while training: that one sends messages to the other
    devices from inside the handler, which blocked for ever when they were just talking of something else.
    Lightning puts the handler from before the run back.
    """

    def __init__(self, interrupts: Interrupts) -> None:
        self.interrupts = interrupts
        self.terminated = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.interrupts.obey_sigterm()

    def after_step(self, trainer: pl.Trainer, module: Any, outputs: Any) -> None:
        if anywhere(trainer, self.interrupts.stop or self.interrupts.terminated):
            self.terminated = anywhere(trainer, self.interrupts.terminated)
            trainer.should_stop = True


class Logging(StepCallback):
    """Writes loss, `module.terms`, `module.metrics` and the step time to `folder`/metrics.jsonl.

    Every `every` steps and at the last; metrics.csv at the end. Lightning's `self.log` costs 0.2 to 0.4 ms a call and
    step even when nothing is written; this costs nothing between its lines.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.speed = Speed()
        self._metrics: Metrics | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            self._metrics = Metrics(self.folder, trainer.global_step)
        self.speed.mark(time.monotonic(), trainer.global_step)

    def after_step(self, trainer: pl.Trainer, module: Any, outputs: Any) -> None:
        step = trainer.global_step
        if self._metrics is None or step % self.every and step != trainer.max_steps:
            return
        self.speed.mark(time.monotonic(), step)
        values = {**outputs, **module.terms, **module.metrics}
        self._metrics.log(step, values | {"step_seconds": self.speed.seconds_a_step()})

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Also of a run that was killed behind its last step, for which no training is begun again."""
        if not trainer.is_global_zero:
            return
        try:
            (self._metrics or Metrics(self.folder, trainer.global_step)).write_csv()
        except OSError as error:
            logger.warning("metrics.csv could not be written: %s", error)


class Validation(StepCallback):
    """Calls `module.validate(step, folder)` every `every` steps, on one device; the run does not notice.

    A full disk does not end the run: then the pictures of that step are missing.
    """

    def __init__(self, every: int, folder: Path) -> None:
        self.every, self.folder = every, folder

    def after_step(self, trainer: pl.Trainer, module: Any, outputs: Any) -> None:
        step = trainer.global_step
        if step % self.every or not trainer.is_global_zero:
            return
        with aside(module):
            try:
                module.validate(step, self.folder)
            except OSError as error:
                logger.warning("the pictures of step %d could not be written: %s", step, error)


@contextmanager
def aside(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; modes and global generators as they were afterwards."""
    modes = [(inner, inner.training) for inner in module.modules()]
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            module.eval()
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for inner, mode in modes:
            inner.training = mode


# --- a loss that is no longer a number -----------------------------------------------------------------


def nonfinite(module: torch.nn.Module) -> str | None:
    """Name of the first parameter with a NaN or infinity, or buffer with a NaN (a bound may be infinite)."""
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            return name
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and torch.isnan(buffer).any():
            return name
    return None


class FiniteGuard(StepCallback):
    """Skips the optimiser's step when the loss or a gradient is not finite; stops after PATIENCE in a row.

    The weights are then untouched, so the last good checkpoint and the present weights stay good. The step is
    counted as done: the next one draws other random numbers. The sentence that says why a run was stopped is
    logged and kept in `failure`; it names the term if the module lists the terms of its last loss in a
    dictionary `terms` (name -> number or tensor).

    Lightning offers no hook that skips a step, but every torch optimiser passes over parameters whose
    gradient is None, weight decay included: that is how a step is skipped here. All devices decide alike.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self.skipped = 0
        self.failure: str | None = None
        self._loss_is_finite = True

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        self._loss_is_finite = self._loss_is_finite and bool(torch.isfinite(loss).all())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None  # fp16 skips overflows itself
        bad = not (self._loss_is_finite and (scaled or _finite([p.grad for p in parameters])))
        if not anywhere(trainer, bad):
            self.in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None
        self.in_a_row += 1
        self.skipped += 1

    def after_step(self, trainer: pl.Trainer, module: Any, outputs: Any) -> None:
        if self.in_a_row == 1 and self.skipped <= _REPORTED:
            logger.warning("step %d skipped: %s", trainer.global_step - 1, self._blame(module))
        if self.in_a_row >= PATIENCE and not trainer.should_stop:
            self._fail(trainer, f"{self._blame(module)} for {self.in_a_row} steps in a row")
            trainer.should_stop = True
        self._loss_is_finite = True

    def check_end(self, trainer: pl.Trainer, module: torch.nn.Module) -> None:
        """A run whose last state is not finite has failed, however few steps that took."""
        if self.failure is None and (bad := nonfinite(module)):
            self._fail(trainer, f"{bad} is not finite")

    def _fail(self, trainer: pl.Trainer, reason: str) -> None:
        self.failure = f"stopped at step {trainer.global_step}: {reason}; the last good checkpoint is kept"
        logger.error(self.failure)

    def _blame(self, module: Any) -> str:
        """Which part of the last step was not finite."""
        if self._loss_is_finite:
            return "a gradient is not finite"
        bad = [name for name, value in module.terms.items() if not torch.isfinite(torch.as_tensor(value)).all()]
        return f"the loss term {' and '.join(map(repr, bad))} is not finite" if bad else "the loss is not finite"


def _finite(tensors: list[torch.Tensor | None]) -> bool:
    """Are all values finite, and their norms? One norm a tensor, so a GPU is waited for once; a CPU takes ten times
    as long for the largest value as for the sum of squares."""
    norms = torch._foreach_norm([tensor for tensor in tensors if tensor is not None])
    return not norms or bool(torch.isfinite(torch.stack([norm.float() for norm in norms])).all())
