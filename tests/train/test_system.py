from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision

from threedgen.systems.train.options import DenoisingConfig
from threedgen.train.callbacks import PATIENCE, FiniteGuard, gradient_norms, loss_scaler
from threedgen.train.muon import Muon
from threedgen.train.system import EMA, System, stratified_uniform


@pytest.mark.parametrize("count", [1, 3, 16])
def test_stratified_uniform_has_one_sample_per_interval(count: int) -> None:
    for seed in range(20):
        samples = stratified_uniform(count, torch.Generator().manual_seed(seed))
        assert sorted((samples * count).long().clamp(max=count - 1).tolist()) == list(range(count))


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("muon", Muon)])
def test_system_builds_the_optimizer_of_the_config(name: str, kind: type[torch.optim.Optimizer]) -> None:
    values = {"optimizer": name, "betas": (0.8, 0.999), "learning_rate": {"0": 0.0, "10": 2e-3}}
    options = DenoisingConfig(batch=1, fresh=0, first=1, **values)
    system = System(options, seed=0, max_steps=10)
    system.options, system.net = options, torch.nn.Linear(2, 2)
    result = system.configure_optimizers()
    optimizer, schedule = result["optimizer"], result["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, kind)
    assert all((g["betas"], g["weight_decay"]) == ((0.8, 0.999), 0.01) for g in optimizer.param_groups)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(1e-3)


class Model(torch.nn.Module):
    """Model with a weight named like an EMA attribute, an integer buffer and a half-precision weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.BatchNorm1d(3)
        self.decay = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        self.coarse = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))


def test_ema_is_the_weighted_mean_of_past_weights():
    model = Model()
    ema = EMA(model, 0.5)
    for step, value in enumerate([3.0, 5.0, 9.0], start=100):  # past the warm-up
        model.decay.data.fill_(value)
        model.inner.num_batches_tracked += 1
        ema.update(model, step)
    expected = 0.5**3 * torch.tensor([1.0, 2.0]) + 0.5**3 * 3 + 0.5**2 * 5 + 0.5 * 9
    assert torch.allclose(ema.weights()["decay"], expected)
    assert ema.weights()["inner.num_batches_tracked"] == 3
    assert ema.weights().keys() == model.state_dict().keys()


@pytest.mark.parametrize("step, decay", [(0, 1 / 10), (8989, 8990 / 8999), (9000, 0.999)])
def test_ema_decay_grows_with_the_step(step: int, decay: float):
    model = Model()
    ema = EMA(model, 0.999)
    model.decay.data.fill_(1001.0)
    ema.update(model, step)
    expected = torch.tensor([1.0, 2.0]) * decay + 1001 * (1 - decay)
    assert torch.allclose(ema.weights()["decay"], expected, rtol=1e-5)


def test_ema_averages_half_precision_weights_in_float32():
    model = Model()
    ema = EMA(model, 0.999)
    model.coarse.data.fill_(1.0078125)  # the next bfloat16 number
    for step in range(10_000, 10_100):
        ema.update(model, step)
    assert 1.0005 < float(ema.weights()["coarse"]) < 1.001


def parameters() -> list[torch.Tensor]:
    """Return a tall and a wide matrix, a convolution, a vector and a matrix for AdamW."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(6, 4), (4, 10), (4, 3, 2, 2), (5,), (7, 3)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def test_muon_equals_torch_muon_for_matrices_and_adamw_for_the_rest() -> None:
    weights, copies = parameters(), parameters()
    ours = Muon(weights, lr=0.01, weight_decay=0.1, elementwise=weights[4:])
    theirs = [
        torch.optim.Muon(copies[:2], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(copies[3:], lr=0.01, weight_decay=0.1, betas=(0.9, 0.98)),
    ]
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        for a, b in zip(weights, copies, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        ours.step()
        for optimizer in theirs:
            optimizer.step()
    for k in (0, 1):
        assert torch.allclose(weights[k], copies[k], atol=1e-3)  # both iterate in bfloat16
        assert (weights[k] - parameters()[k]).abs().max() > 1e-2
    for k in (3, 4):
        assert torch.allclose(weights[k], copies[k], atol=1e-6)
    assert torch.equal(copies[2], parameters()[2]) and not torch.equal(weights[2], copies[2])  # the convolution


STEPS = 40


class Toy(pl.LightningModule):
    """Linear regression with `bad` added to the loss, or NaN in the gradient of `last.weight`, at some batches."""

    def __init__(self, optimizer: str = "fused", nan_loss: Any = (), nan_gradient: Any = (), bad: Any = float("nan")):
        super().__init__()
        self.optimizer, self.nan_loss, self.nan_gradient, self.bad = optimizer, nan_loss, nan_gradient, bad
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
            loss = loss + self.bad  # its gradients are finite
        self.terms = {"fit": float(loss.detach())}
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "muon":
            return Muon(self.parameters(), 1e-2)
        return torch.optim.AdamW(self.parameters(), 1e-2, fused=self.optimizer == "fused")


def train(module: Toy, checkpoint: Path | None = None, **options: Any) -> tuple[FiniteGuard, pl.Trainer]:
    """Train with a loss scaler, from `checkpoint` if it is given; return the guard and the trainer."""
    guard, scaler = FiniteGuard(), torch.amp.GradScaler("cpu")
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[guard],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_steps": STEPS, "plugins": MixedPrecision("16-mixed", "cpu", scaler)} | options,
    )

    def batches() -> Iterator[int]:  # starts after the checkpoint is loaded
        yield from count(trainer.global_step * trainer.accumulate_grad_batches)

    trainer.fit(module, batches(), ckpt_path=checkpoint)
    guard.check_end(trainer, module)
    return guard, trainer


@pytest.mark.parametrize("optimizer", ["fused", "plain", "muon"])
def test_guard_skips_an_infinite_loss_with_a_loss_scaler(optimizer: str) -> None:
    guard, trainer = train(Toy(optimizer, nan_loss=[3, 20], bad=float("inf")))
    assert guard.failure is None and guard.skipped == 2 and trainer.global_step == STEPS


def assert_same_weights(one: Toy, other: Toy) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("batch", [6, 7])
def test_guard_skips_the_whole_step_if_one_of_its_batches_is_bad(batch: int) -> None:
    before, after = Toy(), Toy(nan_loss=[batch])
    train(before, max_steps=3, accumulate_grad_batches=2)
    guard, trainer = train(after, max_steps=4, accumulate_grad_batches=2)
    assert (guard.failure, guard.skipped, trainer.global_step) == (None, 1, 4)
    assert_same_weights(before, after)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_training_has_the_weights_and_loss_scale_of_a_whole_one(tmp_path, accumulate) -> None:
    def toy() -> Toy:  # the loss scale falls in both halves, and both skip a step
        return Toy(nan_loss=[12, 35 * accumulate], nan_gradient=[*range(5), 25 * accumulate])

    whole, first, resumed, half = toy(), toy(), toy(), tmp_path / "half.ckpt"
    scaler = loss_scaler(train(whole, accumulate_grad_batches=accumulate)[1])
    train(first, max_steps=STEPS // 2, accumulate_grad_batches=accumulate)[1].save_checkpoint(half)
    guard, trainer = train(resumed, half, accumulate_grad_batches=accumulate)
    restored = loss_scaler(trainer)
    assert scaler is not None and restored is not None
    assert trainer.global_step == STEPS and guard.skipped == 1 and guard.failure is None
    assert restored.state_dict() == scaler.state_dict() and scaler.get_scale() < 2**16
    assert_same_weights(whole, resumed)
    assert not torch.equal(first.last.weight, resumed.last.weight)


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


@pytest.mark.parametrize("options", [{}, {"plugins": MixedPrecision("bf16-mixed", "cpu")}, {"plugins": []}])
def test_gradients_are_clipped_in_every_precision(options: dict[str, Any]) -> None:
    module = Toy("fused")
    before = module.last.weight.detach().clone()
    assert train(module, max_steps=3, gradient_clip_val=0.01, **options)[0].failure is None
    assert torch.stack(gradient_norms(module)).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert not torch.equal(module.last.weight, before)
