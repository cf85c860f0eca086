"""Noise levels of the views of an object in training."""

from __future__ import annotations

import torch

from threedgen.systems.train_prior.noise_levels import COMPANION_MAX, view_timesteps
from threedgen.systems.train_prior.options import ViewNoiseConfig

T, OBJECTS, VIEWS = 1000, 600, 4


def drawn(seed: int = 0, **shares: float) -> torch.Tensor:
    t = view_timesteps(OBJECTS, VIEWS, T, 0.7, ViewNoiseConfig(**shares), torch.Generator().manual_seed(seed))
    assert t.shape == (OBJECTS, VIEWS) and t.dtype == torch.int64 and 0 <= t.min() and t.max() < T
    return t


def test_all_levels_are_equal_by_default() -> None:
    t = drawn()
    assert (t == t[:, :1]).all() and t[:, 0].float().mean() > T / 2  # a power below 1 favours noise


def test_independent_levels_differ_between_views() -> None:
    t = drawn(independent=1.0)
    assert ((t != t[:, :1]).sum(1) >= 2).float().mean() > 0.95


def test_companions_have_little_noise_and_the_others_one_level() -> None:
    t = drawn(companions=1.0)
    for row in t:
        little = row < COMPANION_MAX * T
        assert 1 <= little.sum() and row[~little].unique().numel() <= 1
    assert (t.amin(1) < COMPANION_MAX * T).all() and (t.amax(1) > t.amin(1)).float().mean() > 0.95


def test_shares_of_the_kinds() -> None:
    t = drawn(independent=0.2, companions=0.5)
    equal = (t == t[:, :1]).all(1).float().mean()
    assert 0.22 < equal < 0.38
    assert torch.equal(t, drawn(independent=0.2, companions=0.5)) and not torch.equal(t, drawn(1, independent=0.2))


def test_single_views_have_one_level_each() -> None:
    options, rng = ViewNoiseConfig(independent=0.5, companions=0.5), torch.Generator().manual_seed(0)
    assert view_timesteps(8, 1, T, 1.0, options, rng).shape == (8, 1)
