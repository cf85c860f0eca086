"""The continuous noise schedule and the sampler's step: against recordings, and against the forward process."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from tests.support.parity_files import recorded, tensors
from threedgen.guidance.diffusion import combine
from threedgen.guidance.threedim import logsnr as ls

LEVELS = torch.tensor([-20.0, -8.0, -1.0, 0.0, 2.0, 11.0, 20.0])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to max(1, |expected|)."""
    return float(((found - expected).abs() / expected.abs().clamp(min=1)).max())


@recorded("sampler_step")
def test_schedule_and_step_match_the_recording(path: Path) -> None:
    a = tensors(path)
    for t, levels in ((a["t"], a["logsnr_of_t"]), (a["t_rand"], a["logsnr_of_t_rand"])):
        error = (ls.logsnr_cosine(t) - levels).abs()
        assert (error < torch.where(t == 1, 5e-3, 1e-4)).all()
    assert relative_error(ls.add_noise(a["q_x0"], a["q_noise"], a["q_logsnr"]), a["q_zt"]) < 1e-5
    eps = combine(a["eps_cond"], a["eps_uncond"], 1 + a["w"][:, None, None, None])
    steps = zip(a["logsnr"], a["logsnr_next"], a["model_mean"], a["model_variance"], strict=True)
    for level, after, mean, variance in steps:
        x0 = ls.x0_from_output(a["z"], eps, level).clamp(-1, 1)
        found, spread = ls.posterior(a["z"], x0, level, after)
        assert relative_error(found, mean) < 1e-5
        assert relative_error(spread.flatten(), variance) < 1e-5


def test_schedule_runs_from_clean_to_noise_and_is_symmetric() -> None:
    t = torch.linspace(0, 1, 101)
    level = ls.logsnr_cosine(t)
    assert level[0] == 20 and level[-1] == -20 and abs(level[50]) < 1e-4 and level.dtype == torch.float32
    assert (level.diff() < 0).all()
    torch.testing.assert_close(level, -level.flip(0), rtol=0, atol=1e-3)
    assert ls.logsnr_cosine(torch.tensor(1.0), -5, 7) == -5


def test_sampling_visits_all_levels_in_order() -> None:
    levels = ls.logsnr_steps(256)
    assert len(levels) == 257 and levels[0] == -20 and levels[-1] == 20 and (levels.diff() > 0).all()
    assert ls.logsnr_steps(1).tolist() == [-20, 20]
    with pytest.raises(ValueError, match="steps = 0 is out of range"):
        ls.logsnr_steps(0)


@pytest.mark.parametrize("prediction", get_args(ls.Prediction))
def test_a_perfect_output_gives_back_the_picture(prediction: ls.Prediction) -> None:
    gen = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, len(LEVELS), 3, 4, 4, generator=gen, dtype=torch.float64)
    levels = LEVELS.double()
    z = ls.add_noise(x0, noise, levels)
    output = ls.target(x0, noise, levels, prediction)
    torch.testing.assert_close(ls.x0_from_output(z, output, levels, prediction), x0, rtol=0, atol=1e-6)


def test_noising_preserves_variance() -> None:
    alpha, sigma = ls.alpha_sigma(LEVELS, torch.zeros(len(LEVELS), 1))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(len(LEVELS), 1))
    torch.testing.assert_close(2 * (alpha / sigma).log().flatten(), LEVELS, rtol=0, atol=1e-4)


def test_a_step_has_the_marginal_of_the_forward_process() -> None:
    """q(z' | x0), gained by averaging q(z' | z, x0) over q(z | x0), is that of noising x0 at once."""
    levels = LEVELS.double()
    before, after = levels[:-1], levels[1:]
    zero, one = torch.zeros(len(before), 1, dtype=torch.float64), torch.ones(len(before), 1, dtype=torch.float64)
    of_z, variance = ls.posterior(one, zero, before, after)
    of_x0, _ = ls.posterior(zero, one, before, after)
    alpha, sigma = ls.alpha_sigma(before, zero)
    alpha_next, sigma_next = ls.alpha_sigma(after, zero)
    torch.testing.assert_close(of_z * alpha + of_x0, alpha_next)
    torch.testing.assert_close((of_z * sigma) ** 2 + variance, sigma_next**2)


def test_a_step_to_the_same_level_changes_nothing() -> None:
    z, x0 = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    mean, variance = ls.posterior(z, x0, torch.tensor(1.5), torch.tensor(1.5))
    torch.testing.assert_close(mean, z)
    assert not variance.any()
