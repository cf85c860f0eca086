"""Sampling inside of a hole: what is around it stays, and decides what comes into it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.tiny_prior import cpu
from threedgen.guidance.diffusion import Conditions, guided
from threedgen.guidance.inpainting import ddim_inpaint
from threedgen.guidance.schedule import Schedule

SCHEDULE, TEXT = Schedule.scaled_linear(), torch.zeros(1, 1, 1)


def of_one_level(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
    """The ideal denoiser of pictures that are of one level wherever one looks: their noise is what differs from it."""
    alpha, sigma = SCHEDULE.alpha_sigma(t, x)
    level = x.mean((2, 3), keepdim=True) / alpha
    return (x - alpha * level.clamp(-3, 3)) / sigma


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_hole_is_filled_as_its_surroundings(repeats: int) -> None:
    z, hole = torch.full((1, 1, 16, 16), 0.8), torch.zeros(1, 1, 16, 16)
    hole[..., 4:8, 6:12] = 1
    given = Conditions((TEXT, TEXT))
    found = ddim_inpaint(guided(of_one_level, 3.0), z, hole, given, SCHEDULE, 30, repeats, cpu())
    assert torch.equal(found[hole == 0], z[hole == 0])
    assert (found - 0.8).abs().max() < 0.1
    elsewhere = ddim_inpaint(guided(of_one_level, 3.0), -z, hole, given, SCHEDULE, 30, repeats, cpu())
    assert (elsewhere + 0.8).abs().max() < 0.1


def test_no_hole_and_nothing_but_hole() -> None:
    z, given = torch.randn(2, 1, 4, 4, generator=cpu()), Conditions((TEXT, TEXT))
    none, all_of_it = (torch.full((2, 1, 4, 4), value) for value in (0.0, 1.0))
    assert torch.equal(ddim_inpaint(guided(of_one_level, 1.0), z, none, given, SCHEDULE, 3, 1, cpu()), z)
    drawn = [ddim_inpaint(guided(of_one_level, 1.0), s * z, all_of_it, given, SCHEDULE, 3, 1, cpu(1)) for s in (1, 2)]
    assert torch.equal(*drawn)
