"""Noise levels and loss of a denoising step."""

from dataclasses import replace

import torch

from threedgen.config import Config
from threedgen.guidance.schedule import Schedule
from threedgen.systems.train.denoising import COMPANION_MAX, Batch, DenoisingSystem, view_timesteps
from threedgen.systems.train.options import ViewNoiseConfig
from threedgen.train.system import sample_timesteps

T, OBJECTS, VIEWS = 1000, 600, 4


def sample(seed: int = 0, **shares: float) -> torch.Tensor:
    t = view_timesteps(OBJECTS, VIEWS, T, 0.7, ViewNoiseConfig(**shares), torch.Generator().manual_seed(seed))
    assert t.shape == (OBJECTS, VIEWS) and t.dtype == torch.int64 and 0 <= t.min() and t.max() < T
    return t


def test_noise_levels_of_views() -> None:
    t = sample()
    assert (t == t[:, :1]).all() and t[:, 0].float().mean() > T / 2  # a power below 1 favours noise
    t = sample(independent=1.0)
    assert ((t != t[:, :1]).sum(1) >= 2).float().mean() > 0.95
    t = sample(companions=1.0)
    for row in t:
        little = row < COMPANION_MAX * T
        assert 1 <= little.sum() and row[~little].unique().numel() <= 1
    assert (t.amax(1) > t.amin(1)).float().mean() > 0.95
    t = sample(independent=0.2, companions=0.5)
    assert 0.22 < (t == t[:, :1]).all(1).float().mean() < 0.38
    assert torch.equal(t, sample(independent=0.2, companions=0.5)) and not torch.equal(t, sample(1, independent=0.2))
    options, rng = ViewNoiseConfig(independent=0.5, companions=0.5), torch.Generator().manual_seed(0)
    assert view_timesteps(8, 1, T, 1.0, options, rng).shape == (8, 1)


def test_logit_normal_timesteps() -> None:
    t = sample_timesteps(4000, T, 2.0, torch.Generator().manual_seed(0), (-0.4, 0.5))
    logit = torch.logit((t + 0.5) / T)
    assert abs(logit.mean() + 0.4) < 0.01 and abs(logit.std() - 0.5) < 0.01


class Zero:
    """A model whose output is 0."""

    schedule = Schedule.linear(T=T)

    def network(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def test_loss_weights_each_image() -> None:
    system = DenoisingSystem(Config(), Zero(), seed=0, max_steps=1)  # type: ignore[arg-type]
    noise, t = torch.tensor([[[[1.0, 3.0]]], [[[2.0, 0.0]]]]), torch.tensor([3, 700])
    batch = Batch(torch.zeros_like(noise), t, noise, torch.zeros(2, 1, 1))
    assert system.denoising_loss(batch).item() == 3.5
    assert system.denoising_loss(replace(batch, weights=torch.tensor([0.5, 2.0]))).item() == (0.5 * 5 + 2 * 2) / 2
    assert system.denoising_loss(replace(batch, weights=torch.ones(2))).item() == 3.5
