"""Optimizer, timestep sampling and averaged weights of all systems."""

import pytest
import torch

from threedgen.systems.train.options import DenoisingConfig
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


@pytest.mark.parametrize("step, decay", [(0, 1 / 10), (1, 2 / 11), (8989, 8990 / 8999), (9000, 0.999), (10**6, 0.999)])
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


def test_ema_is_in_the_state_dict_of_its_parent():
    parent = torch.nn.Module()
    parent.ema = EMA(Model(), 0.9)
    names = parent.state_dict()
    assert len(names) == len(Model().state_dict()) and all(name.startswith("ema./") for name in names)
    assert not list(parent.parameters())


def test_ema_applied_restores_the_weights_after_an_error():
    model = Model()
    ema = EMA(model, 0.9)
    model.decay.data.fill_(7.0)
    with pytest.raises(KeyError), ema.applied(model):
        assert model.decay.tolist() == [1.0, 2.0]
        raise KeyError
    assert model.decay.tolist() == [7.0, 7.0]
