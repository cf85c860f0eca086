"""Lightning callbacks around each step: seeding, interrupts, metrics, validation and a guard against NaN."""

import logging
import math
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from pytorch_lightning.utilities.types import STEP_OUTPUT

from threedgen.run import seeding
from threedgen.run.interrupts import Interrupts
from threedgen.run.metrics import Metrics
from threedgen.run.progress import Speed
from threedgen.train.system import System

logger = logging.getLogger(__name__)
PATIENCE = 10  # number of consecutive skipped steps after which a run stops
_MAX_WARNINGS = 3


def any_rank(trainer: Trainer, flag: bool) -> bool:
    """Return whether `flag` is true on any rank (process of a distributed run), so that all ranks decide alike.

    All ranks must call the function, each with its own `flag`.
    """
    return trainer.strategy.reduce_boolean_decision(flag, all=False) if trainer.world_size > 1 else flag


def with_whole_loss(trainer: Trainer, outputs: STEP_OUTPUT) -> dict[str, Any]:
    """Return the outputs {"loss": loss, ...} that Lightning passes to callbacks, with the loss of the training step.

    Lightning has divided it by the number of batches per optimisation step (`trainer.accumulate_grad_batches`).
    """
    assert isinstance(outputs, Mapping)
    return {**outputs, "loss": outputs["loss"] * trainer.accumulate_grad_batches}


class StepCallback(Callback):
    """Base class of callbacks that act after each optimisation step.

    A subclass implements `after_step(trainer, module, outputs)`, where `outputs` are those of the last training step.
    With gradient accumulation a step has several batches; the method is called once, after the last of them.
    """

    steps = 0  # number of optimisation steps that this process has done
    _step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        complete, self._step = trainer.global_step != self._step, trainer.global_step
        if complete:
            self.steps += 1
            module: Any = pl_module
            self.after_step(trainer, module, outputs)

    def after_step(self, trainer: Trainer, module: System, outputs: STEP_OUTPUT) -> None:
        raise NotImplementedError


class Seeding(Callback):
    """Callback that seeds the global generators of torch, NumPy and Python from (seed, batch, rank) before each batch.

    Dropout and libraries use the global generators; our own code uses threedgen.run.seeding. Numba's generators are not
    seeded, because Numba kernels receive their random numbers as arguments.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: int, batch_idx: int) -> None:
        key = seeding.key(self.seed, batch, "global generators", trainer.global_rank)
        torch.manual_seed(key)
        np.random.seed(key % 2**32)
        random.seed(key)


class StopOnInterrupt(StepCallback):
    """Callback that stops the run after the current step if any rank received Ctrl-C or SIGTERM.

    `interrupts` is the handler of these signals. `terminated` becomes True if the signal was SIGTERM. The callback
    replaces Lightning's SIGTERM handler, which can deadlock because it waits for the other ranks.
    """

    def __init__(self, interrupts: Interrupts) -> None:
        self.interrupts = interrupts
        self.terminated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.interrupts.catch_sigterm()

    def after_step(self, trainer: Trainer, module: System, outputs: STEP_OUTPUT) -> None:
        if any_rank(trainer, self.interrupts.stop or self.interrupts.terminated):
            self.terminated = any_rank(trainer, self.interrupts.terminated)
            trainer.should_stop = True


class Logging(StepCallback):
    """Callback that logs loss, `module.terms`, `module.metrics` and step time every `every` steps and at the end.

    `module` is the trained module: its `terms` are the terms of the loss by name, its `metrics` further values of the
    last step by name. Rank 0 writes all values to metrics.jsonl and, at the end, metrics.csv in `folder`, and sends
    them to Lightning's loggers. Lightning's `self.log` is not used, because it takes 0.2 to 0.4 ms per call even if
    nothing is written.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.speed = Speed()
        self._metrics: Metrics | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            self._metrics = Metrics(self.folder, trainer.global_step)
        self.speed.mark(time.monotonic(), trainer.global_step)

    def after_step(self, trainer: Trainer, module: System, outputs: STEP_OUTPUT) -> None:
        step = trainer.global_step
        if self._metrics is None or step % self.every and step != trainer.max_steps:
            return
        self.speed.mark(time.monotonic(), step)
        values = {**with_whole_loss(trainer, outputs), **module.terms, **module.metrics}
        values["step_seconds"] = self.speed.seconds_per_step()
        self._metrics.log(step, values)
        for extra in trainer.loggers:
            extra.log_metrics({name: float(value) for name, value in values.items()}, step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.sync()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # also runs when the last step was done before a kill: then on_train_start is not called
        if not trainer.is_global_zero:
            return
        try:
            (self._metrics or Metrics(self.folder, trainer.global_step)).write_csv()
        except OSError as error:
            logger.warning("cannot write metrics.csv: %s", error)


class Validation(StepCallback):
    """Callback that calls `module.validate(step, folder)` on rank 0 every `every` steps, to write images or files.

    During the call the module is in eval mode; afterwards its modes and the global random states are restored. If
    `validate` cannot write its files, a warning is logged and the run continues.
    """

    def __init__(self, every: int, folder: Path) -> None:
        self.every, self.folder = every, folder

    def after_step(self, trainer: Trainer, module: System, outputs: STEP_OUTPUT) -> None:
        step = trainer.global_step
        if step % self.every or not trainer.is_global_zero:
            return
        with isolated_eval(module):
            try:
                module.validate(step, self.folder)
            except OSError as error:
                logger.warning("cannot write the images of step %d: %s", step, error)


@contextmanager
def isolated_eval(module: torch.nn.Module) -> Iterator[None]:
    """Set eval mode of a module and disable gradients inside a context.

    On exit, the modes of the module and of all submodules are restored. The global random states of torch, NumPy and
    Python are also restored, but not after an error.
    """
    modes = [(inner, inner.training) for inner in module.modules()]
    try:
        with isolate_rng(), torch.no_grad():
            module.eval()
            yield
    finally:
        for inner, mode in modes:
            inner.training = mode


def first_nonfinite(module: torch.nn.Module) -> str | None:
    """Return the name of a parameter with NaN or infinity, else of a buffer with NaN; None if there is neither."""
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            return name
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and torch.isnan(buffer).any():
            return name
    return None


def gradient_norms(module: torch.nn.Module) -> list[torch.Tensor]:
    """Return the L2 norm of each parameter's gradient, a list of float32 scalars; parameters without one are left out.

    A norm is not finite if its gradient is not finite.
    """
    # on CPUs the norm is ten times faster than the maximum
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return [norm.float() for norm in torch._foreach_norm(gradients)]


def first_nonfinite_gradient(module: torch.nn.Module) -> str | None:
    """Return the name of the first parameter whose gradient has NaN or infinity; None if there is none."""
    gradients = ((name, p.grad) for name, p in module.named_parameters() if p.grad is not None)
    return next((name for name, gradient in gradients if not torch.isfinite(gradient).all()), None)


def loss_scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    """Return the loss scaler that Lightning uses with the option precision=16-mixed; None for other precisions."""
    return getattr(trainer.precision_plugin, "scaler", None)


class FiniteGuard(StepCallback):
    """Callback that skips steps with a non-finite loss or gradient, and stops the run after 10 skips in a row.

    A skipped step does not change the weights and counts as done: the next step uses other random numbers. The
    attribute `failure` is a message with the reason why the run stopped, such as the name of the loss term or parameter
    that is not finite; None if the guard did not stop it.

    A loss scaler (precision 16-mixed) itself skips steps with infinite gradients, and lowers the loss scale after each.
    The guard then counts only non-finite losses as skips. It also stops the run at once if a gradient is not finite at
    a loss scale below 1, because the scale can then no longer be the cause.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self.skipped = 0
        self.failure: str | None = None
        self._losses: list[torch.Tensor] = []  # of the batches since the last optimizer step
        self._loss_is_finite = True
        self._bad_gradient: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.gradient_clip_val:
            for optimizer in trainer.optimizers:  # fused ones would unscale inside `step`, too late for clipping
                optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        self._losses.append(loss.detach().sum().float())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        scaler, losses = loss_scaler(trainer), self._losses
        scale = None if scaler is None else scaler._scale
        numbers = [*losses, *(gradient_norms(pl_module) if scale is None else [scale])]
        values: list[float] = torch.stack(numbers).cpu().tolist() if numbers else []  # waits once for a GPU
        self._losses, others = [], values[len(losses) :]
        self._loss_is_finite = all(map(math.isfinite, values[: len(losses)]))
        suspicious = not all(map(math.isfinite, others)) if scale is None else others[0] < 1  # above 1 they are normal
        self._bad_gradient = first_nonfinite_gradient(pl_module) if suspicious else None
        if not any_rank(trainer, not self._loss_is_finite or self._bad_gradient is not None):
            self.in_a_row = 0
            return
        # Lightning has no hook to skip a step: torch optimisers ignore parameters without a gradient, weight decay too.
        # A fused one with a loss scaler checks the gradients itself and needs at least one: an infinite one
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            for parameter in parameters[:1]:
                parameter.grad = torch.full_like(parameter, torch.inf)
        else:
            for parameter in parameters:
                parameter.grad = None
        self.in_a_row += 1
        self.skipped += 1

    def after_step(self, trainer: Trainer, module: System, outputs: STEP_OUTPUT) -> None:
        if self.in_a_row == 1 and self.skipped <= _MAX_WARNINGS:
            logger.warning("step %d skipped: %s", trainer.global_step - 1, self._blame(module))
        scale_lost = loss_scaler(trainer) is not None and self._bad_gradient is not None
        if (self.in_a_row >= PATIENCE or scale_lost) and not trainer.should_stop:
            reason = "at a loss scale below 1" if scale_lost else f"for {self.in_a_row} steps in a row"
            self._fail(trainer, f"{self._blame(module)} {reason}")
            trainer.should_stop = True
        self._loss_is_finite = True

    def check_end(self, trainer: Trainer, module: torch.nn.Module) -> None:
        """Set `failure` if a parameter of the module has NaN or infinity, or a buffer has NaN, at the end of a run.

        Call this after every training. In the steps the guard checks only losses and gradients, not the weights.
        """
        if self.failure is None and (bad := first_nonfinite(module)):
            self._fail(trainer, f"{bad} is not finite")

    def _fail(self, trainer: Trainer, reason: str) -> None:
        self.failure = f"stopped at step {trainer.global_step}: {reason}; the last good checkpoint is kept"
        logger.error(self.failure)

    def _blame(self, module: System) -> str:
        if self._loss_is_finite:
            bad_gradient = self._bad_gradient and f"the gradient of {self._bad_gradient} is not finite"
            return bad_gradient or "the loss or a gradient of another process is not finite"
        bad = [name for name, value in module.terms.items() if not torch.isfinite(torch.as_tensor(value)).all()]
        return f"the loss term {' and '.join(map(repr, bad))} is not finite" if bad else "the loss is not finite"
