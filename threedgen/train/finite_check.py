"""Stops a run whose loss is no longer a number, before it spoils the weights."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch

logger = logging.getLogger(__name__)
_SAID = 3  # so many skipped steps are reported one by one


def anywhere(trainer: pl.Trainer, flag: bool) -> bool:
    """Is `flag` true on any device? All of them get the same answer; one device alone waits for nothing."""
    return trainer.strategy.reduce_boolean_decision(flag, all=False) if trainer.world_size > 1 else flag


def nonfinite(module: torch.nn.Module) -> str | None:
    """Name of the first parameter with a NaN or infinity, or buffer with a NaN (a bound may be infinite)."""
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            return name
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and torch.isnan(buffer).any():
            return name
    return None


class FiniteGuard(pl.Callback):
    """Skips the optimiser's step when the loss or a gradient is not finite; stops after `patience` in a row.

    The weights are then untouched, so the last good checkpoint and the present weights stay good. The step is
    counted as done: the next one draws other random numbers. The sentence that says why a run was stopped is
    logged and kept in `failure`; it names the term if the module lists the terms of its last loss in a
    dictionary `terms` (name -> number or tensor).

    Lightning offers no hook that skips a step, but every torch optimiser passes over parameters whose
    gradient is None, weight decay included: that is how a step is skipped here. All devices decide alike.
    """

    def __init__(self, patience: int = 10) -> None:
        self.patience = patience
        self.in_a_row = 0
        self.skipped = 0
        self.failure: str | None = None
        self._loss_is_finite = True

    @property
    def healthy(self) -> bool:
        """Was the last step a good one?"""
        return self.in_a_row == 0

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

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.in_a_row == 1 and self.skipped <= _SAID:
            blame = _blame(pl_module, self._loss_is_finite)
            logger.warning("step %d skipped: %s", trainer.global_step - 1, blame)
        if self.in_a_row >= self.patience and not trainer.should_stop:
            self.failure = (
                f"stopped at step {trainer.global_step}: {_blame(pl_module, self._loss_is_finite)} "
                f"for {self.in_a_row} steps in a row; the last good checkpoint is kept"
            )
            logger.error(self.failure)
            trainer.should_stop = True
        self._loss_is_finite = True


def _finite(tensors: list[torch.Tensor | None]) -> bool:
    """Are all values finite? One norm a tensor and one comparison, so a GPU is waited for only once."""
    norms = torch._foreach_norm([tensor for tensor in tensors if tensor is not None], float("inf"))
    return not norms or bool(torch.isfinite(torch.stack([norm.float() for norm in norms])).all())


def _blame(module: pl.LightningModule, loss_is_finite: bool) -> str:
    """Which part of the last step was not finite."""
    if loss_is_finite:
        return "a gradient is not finite"
    terms: dict[str, Any] = getattr(module, "terms", {})
    bad = [name for name, value in terms.items() if not torch.isfinite(torch.as_tensor(value)).all()]
    return f"the loss term {' and '.join(map(repr, bad))} is not finite" if bad else "the loss is not finite"
