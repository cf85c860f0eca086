"""What all systems that learn draw in a step, and by what they learn."""

from __future__ import annotations

import pytest
import torch

from threedgen.config.sections import LearningConfig
from threedgen.train.muon import Muon
from threedgen.train.system import System, stratified


@pytest.mark.parametrize("count", [1, 3, 16])
def test_the_noise_levels_of_a_step_are_spread_out(count: int) -> None:
    for seed in range(20):
        draws = stratified(count, torch.Generator().manual_seed(seed))
        assert sorted((draws * count).long().clamp(max=count - 1).tolist()) == list(range(count))


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("muon", Muon)])
def test_the_config_says_by_what_is_learnt(name: str, kind: type[torch.optim.Optimizer]) -> None:
    how = {"optimizer": name, "betas": (0.8, 0.999), "weight_decay": 0.1, "learning_rate": {"0": 0.0, "10": 2e-3}}
    options = LearningConfig(batch=1, fresh=0, **how)
    system = System(options, seed=0, max_steps=10)
    system.options, system.net = options, torch.nn.Linear(2, 2)
    made = system.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, kind)
    assert all((g["betas"], g["weight_decay"]) == ((0.8, 0.999), 0.1) for g in optimizer.param_groups)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(1e-3)
