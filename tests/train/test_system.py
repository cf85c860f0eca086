"""Optimizer and timestep sampling of all systems."""

import pytest
import torch

from threedgen.systems.train.options import DenoisingConfig
from threedgen.train.muon import Muon
from threedgen.train.system import System, stratified_uniform


@pytest.mark.parametrize("count", [1, 3, 16])
def test_stratified_uniform_has_one_sample_per_interval(count: int) -> None:
    for seed in range(20):
        samples = stratified_uniform(count, torch.Generator().manual_seed(seed))
        assert sorted((samples * count).long().clamp(max=count - 1).tolist()) == list(range(count))


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("muon", Muon)])
def test_system_builds_the_optimizer_of_the_config(name: str, kind: type[torch.optim.Optimizer]) -> None:
    values = {"optimizer": name, "betas": (0.8, 0.999), "weight_decay": 0.1, "learning_rate": {"0": 0.0, "10": 2e-3}}
    options = DenoisingConfig(batch=1, fresh=0, first=1, **values)
    system = System(options, seed=0, max_steps=10)
    system.options, system.net = options, torch.nn.Linear(2, 2)
    result = system.configure_optimizers()
    optimizer, schedule = result["optimizer"], result["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, kind)
    assert all((g["betas"], g["weight_decay"]) == ((0.8, 0.999), 0.1) for g in optimizer.param_groups)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(1e-3)
