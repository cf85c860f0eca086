"""Guard against NaN with a loss scaler (16-mixed), on a CPU."""

from itertools import count
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from threedgen.train.callbacks import PATIENCE, FiniteGuard
from threedgen.train.muon import Muon

STEPS = 40


class Toy(pl.LightningModule):
    """Linear regression with NaN in the loss or in the gradient of `last.weight` at some steps."""

    def __init__(self, optimizer: str = "fused", nan_loss: Any = (), nan_gradient: Any = ()) -> None:
        super().__init__()
        self.optimizer, self.nan_loss, self.nan_gradient = optimizer, nan_loss, nan_gradient
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
        self.metrics: dict[str, float] = {}
        self.terms: dict[str, float] = {}

    def training_step(self, batch: int, batch_idx: int) -> torch.Tensor:
        x = torch.rand(16, 4, generator=torch.Generator().manual_seed(batch))
        loss = (self.last(self.first(x)) - x.sum(1, keepdim=True)).square().mean()
        if batch in self.nan_gradient:
            loss = loss + (self.last.weight.clamp(min=0) * 0).sqrt().sum()  # infinity times 0
        if batch in self.nan_loss:
            loss = loss + float("nan")  # its gradients are finite
        self.terms = {"fit": float(loss.detach())}
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "muon":
            return Muon(self.parameters(), 1e-2)
        return torch.optim.AdamW(self.parameters(), 1e-2, fused=self.optimizer == "fused")


def train(module: Toy, **options: Any) -> tuple[FiniteGuard, pl.Trainer]:
    """Train with a loss scaler; return the guard and the trainer."""
    guard, scaler = FiniteGuard(), torch.amp.GradScaler("cpu")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        callbacks=[guard],
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, iter(count()))
    guard.check_end(trainer, module)
    return guard, trainer


@pytest.mark.parametrize("optimizer", ["fused", "plain", "muon"])
def test_guard_skips_a_nan_loss_with_a_loss_scaler(optimizer: str) -> None:
    guard, trainer = train(Toy(optimizer, nan_loss=[3, 20]))
    assert guard.failure is None and guard.skipped == 2 and trainer.global_step == STEPS


def test_guard_stops_nan_losses_with_a_loss_scaler() -> None:
    module = Toy(nan_loss=range(5, STEPS))
    guard, trainer = train(module)
    assert guard.failure is not None and "'fit'" in guard.failure and trainer.global_step == 5 + PATIENCE
    assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.parametrize("optimizer", ["fused", "muon"])
def test_guard_names_the_nan_gradient_when_the_loss_scale_is_below_one(optimizer: str) -> None:
    guard, trainer = train(Toy(optimizer, nan_gradient=range(STEPS)))
    assert guard.failure is not None and "last.weight" in guard.failure
    assert trainer.global_step < 20


def test_guard_ignores_gradients_that_overflow_at_a_large_loss_scale() -> None:
    guard, trainer = train(Toy(nan_gradient=range(5)))
    assert guard.failure is None and guard.skipped == 0 and trainer.global_step == STEPS


@pytest.mark.parametrize("optimizer", ["fused", "plain"])
def test_gradients_are_clipped_with_a_loss_scaler(optimizer: str) -> None:
    module = Toy(optimizer)
    before = module.last.weight.detach().clone()
    assert train(module, gradient_clip_val=0.5)[0].failure is None
    assert not torch.equal(module.last.weight, before)
