"""Density control of 3D Gaussians during training, of two kinds.

"adaptive" clones, splits and removes Gaussians (Kerbl et al. 2023, section 5). "mcmc" relocates Gaussians and adds
noise to their positions (Kheradmand et al. 2024, "3D Gaussian Splatting as Markov Chain Monte Carlo", arXiv
2404.09591). All random numbers are seeded with the step, so a resumed run makes the same changes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from threedgen.representations.base import resize_parameter
from threedgen.run.memory import to_device
from threedgen.run.seeding import generator

from . import rotation_rows

if TYPE_CHECKING:
    from .field import Gaussians

PARAMETERS = ("means", "log_scales", "quaternions", "opacity_logits", "features")
SPLIT = 1.6  # divisor of the standard deviations of a split Gaussian
GROWTH = 1.05  # factor on the number of Gaussians per densification (MCMC)
MAX_SHARES = 51  # largest number of Gaussians that replace one and share its opacity (MCMC)
NOISE_OPACITY, NOISE_SHARPNESS = 0.005, 100.0
"""MCMC: the noise of a position is multiplied by sigmoid(NOISE_SHARPNESS * (NOISE_OPACITY - opacity))."""


def after_step(field: Gaussians, step: int, optimizer: Optimizer) -> None:
    """Change number and places of the Gaussians after training step `step`, in `field` and in the optimizer's state.

    The option `densify` selects the changes. Changes at intervals of steps happen only in a part of the run, from the
    first to the second number in the option `densify_range`, which are fractions of all steps.

    - "adaptive": every `interval` steps, Gaussians whose image position has a large mean gradient are cloned if they
      are small, else split into two smaller ones, and transparent ones are removed. Every `reset_interval` steps, all
      opacities are reduced (`reset_opacity`).
    - "mcmc": every `interval` steps, transparent Gaussians are moved to the places of others, chosen at random in
      proportion to their opacity, and new ones are added there. After every step, noise is added to the positions.
    - "none": no changes.
    """
    o, done, total = field.options, step + 1, field.max_steps
    if o.densify == "none" or total is None:
        return
    rng = generator(0, step, "density control")
    first, last = (share * total for share in o.densify_range)
    if o.densify == "mcmc":
        _move(field, optimizer, rng)
    if not first <= done <= last:
        return
    if done % o.interval == 0:
        (_relocate if o.densify == "mcmc" else _divide)(field, optimizer, rng)
    if o.densify == "adaptive" and o.reset_interval and done % o.reset_interval == 0:
        reset_opacity(field, optimizer)


def _replace(field: Gaussians, optimizer: Optimizer, kept: Tensor, added: dict[str, Tensor]) -> None:
    # keep the rows `kept` (K,) with their optimizer state, append new rows `added`, and reset the sums of gradients
    for name in PARAMETERS:
        resize_parameter(field, name, optimizer, kept, added[name])
    field.gradient_sum = field.means.new_zeros(len(field.means))
    field.gradient_count = field.means.new_zeros(len(field.means))


def _rows(field: Gaussians, index: Tensor) -> dict[str, Tensor]:
    return {name: getattr(field, name).detach()[index] for name in PARAMETERS}


def _rotations(field: Gaussians, index: Tensor | slice = slice(None)) -> Tensor:
    # (K, 3, 3), from the axes of the Gaussians `index` to the world
    return torch.stack([torch.stack(row, dim=-1) for row in rotation_rows(field.quaternions[index])], dim=-2)


def _divide(field: Gaussians, optimizer: Optimizer, rng: torch.Generator) -> None:
    # clone small Gaussians with a large mean gradient, split large ones, remove transparent ones
    o, gradient = field.options, field.gradient_sum / field.gradient_count.clamp(min=1)
    solid = field.opacity_logits.sigmoid() >= o.min_opacity
    if not solid.any():
        return
    room = max(0, o.max_count - int(solid.sum()))
    largest = torch.where(solid, gradient, -1).argsort(descending=True, stable=True)[:room]
    grown = torch.zeros_like(solid)
    grown[largest] = solid[largest] & (gradient[largest] > o.split_gradient)
    small = field.log_scales.amax(dim=-1) <= math.log(max(o.clone_size * o.radius, 1e-30))
    cloned, split = (grown & small).nonzero()[:, 0], (grown & ~small).nonzero()[:, 0]
    halves = _rows(field, split.repeat(2))
    noise = to_device(torch.randn(len(halves["means"]), 3, generator=rng), field.means.device)
    offset = (noise * halves["log_scales"].exp())[:, None]
    halves["means"] = halves["means"] + (_rotations(field, split.repeat(2)) * offset).sum(-1)
    halves["log_scales"] = halves["log_scales"] - math.log(SPLIT)
    copies = _rows(field, cloned)
    kept = (solid & ~(grown & ~small)).nonzero()[:, 0]
    _replace(field, optimizer, kept, {name: torch.cat([copies[name], halves[name]]) for name in PARAMETERS})


def reset_opacity(field: Gaussians, optimizer: Optimizer) -> None:
    """Reduce all opacities to at most twice the option `min_opacity`, and set their optimizer state to zero.

    Gaussians that training does not make opaque again fall below `min_opacity` and are removed later.
    """
    limit = torch.tensor(2 * field.options.min_opacity).logit().item()
    no_rows = torch.zeros(0, dtype=torch.long, device=field.means.device)
    resize_parameter(field, "opacity_logits", optimizer, no_rows, field.opacity_logits.detach().clamp(max=limit))


def _relocate(field: Gaussians, optimizer: Optimizer, rng: torch.Generator) -> None:
    # move Gaussians below `min_opacity` to others, sampled by opacity, and add new ones; Gaussians at one place share
    # the opacity of the one that was there
    o, opacity = field.options, field.opacity_logits.sigmoid()
    alive = opacity >= o.min_opacity
    count = len(opacity)
    new = min(o.max_count, math.ceil(GROWTH * count)) - int(alive.sum())
    if new <= 0 or not alive.any():
        return
    sampled = to_device((opacity * alive).cpu().multinomial(new, replacement=True, generator=rng), opacity.device)
    shares = torch.bincount(sampled, minlength=count) + 1
    sources = (shares > 1).nonzero()[:, 0]
    shared, factor = split_equally(opacity[sources], shares[sources])
    source_rows = _rows(field, sources)
    source_rows["opacity_logits"] = shared.clamp(o.min_opacity, 1 - 1e-6).logit()
    source_rows["log_scales"] = source_rows["log_scales"] + factor.log()[:, None]
    position = torch.zeros_like(shares).index_copy(0, sources, torch.arange(len(sources), device=sources.device))
    copies = torch.cat([torch.arange(len(sources), device=sources.device), position[sampled]])
    kept = (alive & (shares == 1)).nonzero()[:, 0]
    _replace(field, optimizer, kept, {name: rows[copies] for name, rows in source_rows.items()})


def split_equally(opacity: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Return opacity and size of n equal Gaussians that replace one Gaussian at its place and together look the same.

    The render is then nearly unchanged when Gaussians are moved to the place of another one, or added there. The values
    are those of equation 9 of the MCMC paper (Kheradmand et al. 2024).

    Args:
        opacity: (N,) opacities, in (0, 1), of N Gaussians to replace.
        copies: (N,) int64, the number n for each of them: 2 if one Gaussian is added to it. Clamped to 51 (MAX_SHARES).

    Returns:
        Opacity (N,) of each of the n equal Gaussians.
        Factor (N,): their standard deviations are those of the replaced Gaussian times this factor.
    """
    o, n = opacity.double()[:, None], copies.clamp(max=MAX_SHARES).double()[:, None]
    each = 1 - (1 - o) ** (1 / n)
    j = torch.arange(1, MAX_SHARES + 1, device=o.device, dtype=o.dtype)
    log_binomial = torch.lgamma(n + 1) - torch.lgamma(j + 1) - torch.lgamma((n - j + 1).clamp(min=1))
    terms = (-1) ** (j - 1) * log_binomial.exp() * each**j / j.sqrt()
    total = torch.where(j <= n, terms, 0).sum(-1)
    return each[:, 0].to(opacity), (o[:, 0] / total).to(opacity)


def _move(field: Gaussians, optimizer: Optimizer, rng: torch.Generator) -> None:
    # add noise to the positions, in the shape of each Gaussian and only for transparent ones (equation 8)
    rate = next(g["lr"] for g in optimizer.param_groups if any(p is field.means for p in g["params"]))
    fade = torch.sigmoid(NOISE_SHARPNESS * (NOISE_OPACITY - field.opacity_logits.sigmoid()))
    noise = to_device(torch.randn(field.means.shape, generator=rng), field.means.device)
    rotations, variances = _rotations(field), (2 * field.log_scales).exp()
    local = (rotations * noise[:, :, None]).sum(-2)
    shaped = (rotations * (variances * local)[:, None]).sum(-1)
    field.means.add_(field.options.noise * rate * fade[:, None] * shaped)
