"""DDIM sampling of latents (Song et al. 2021, arXiv 2010.02502): from noise, img2img, inpainting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .guidance import Condition, Denoiser
from .schedule import Schedule

Generators = torch.Generator | Sequence[torch.Generator] | None
OnStep = Callable[[int, int], object]
"""Callback (steps done, steps in total) before the first step and after each."""


class InitLatents(NamedTuple):
    """Start of an img2img sample: clean latents (B, C, h, w) and the noise strength in (0, 1]."""

    latents: Tensor
    strength: float


def no_callback(done: int, steps: int) -> None:
    """Do nothing."""


def before_steps(callback: Callable[[], None]) -> OnStep:
    """Return a step callback that calls `callback` before each step."""
    return lambda done, steps: callback() if done < steps else None


def ddim_timesteps(steps: int, T: int = 1000) -> Tensor:
    """Return the time steps visited, ascending, (steps,) int64: floor(i T / steps) + 1.

    This is the grid of the ldm code base whenever `steps` divides T.

    Raises:
        ValueError: steps is not in 1..T.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps = {steps} is out of range; choose 1 to {T}")
    # The offset of 1 would leave the table if every t were visited.
    return torch.arange(steps) * T // steps + (1 if steps < T else 0)


def ddim_alphas(schedule: Schedule, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha_bar at each of the ascending `timesteps` and at the next one in sampling order, float64.

    The last step lands on alpha_bar[0], not on 1: Stable Diffusion is sampled without the final clean step.
    """
    alpha_bar = schedule.alpha_bar.cpu().double()
    a = alpha_bar[timesteps]
    return a, torch.cat([alpha_bar[:1], a[:-1]])


def ddim_sigma(a: Tensor, a_prev: Tensor, eta: float) -> Tensor:
    """Return the standard deviation of a step's fresh noise (eq. 16): eta 0 is DDIM, 1 like DDPM."""
    return eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)).clamp(min=0).sqrt()


def ddim_step(
    x: Tensor, eps: Tensor, a: Tensor, a_prev: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take one step from alpha_bar `a` to `a_prev` (scalar tensors), eq. 12.

    Args:
        noise: like `x`; needed when `eta` > 0.

    Returns:
        x_prev and the predicted x0, both like `x`.
    """
    sigma = ddim_sigma(a, a_prev, eta)
    x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    x_prev = a_prev.sqrt() * x0 + (1 - a_prev - sigma**2).clamp(min=0).sqrt() * eps
    if eta > 0:
        if noise is None:
            raise ValueError(f"eta = {eta} needs noise; pass a tensor like x, or eta = 0")
        x_prev = x_prev + sigma * noise
    return x_prev, x0


@torch.no_grad()
def ddim_sample(
    denoise: Denoiser,
    x_T: Tensor,
    text: Any,
    camera: Tensor | None,
    n_view: int,
    schedule: Schedule,
    timesteps: Tensor,
    eta: float = 0.0,
    generator: Generators = None,
    on_step: OnStep = no_callback,
) -> Tensor:
    """Denoise `x_T` (B, C, h, w), noisy at the last of the ascending `timesteps`, to a sample of the same shape.

    Args:
        denoise: wrap it in `guided` for classifier-free guidance, and pass a pair or a `Condition` as `text`.
        generator: of the fresh noise; used only when `eta` > 0.
    """
    alphas, alphas_prev = ddim_alphas(schedule, timesteps)
    x = x_T
    on_step(0, len(timesteps))
    for i in reversed(range(len(timesteps))):
        t = torch.full((len(x),), int(timesteps[i]), device=x.device)
        eps = denoise(x, t, text, camera, n_view).to(x.dtype)
        noise = fresh_noise(x, generator) if eta > 0 else None
        x, _ = ddim_step(x, eps, alphas[i], alphas_prev[i], eta, noise)
        on_step(len(timesteps) - i, len(timesteps))
    return x


def sample_latents(
    denoise: Denoiser,
    noise: Tensor,
    condition: Condition,
    schedule: Schedule,
    steps: int,
    init: InitLatents | None = None,
    eta: float = 0.0,
    generator: Generators = None,
    on_step: OnStep = no_callback,
) -> Tensor:
    """Sample latents from `noise` (B, C, h, w), or img2img from `init` (SDEdit, Meng et al. 2022, arXiv 2108.01073).

    Args:
        denoise: a guided denoiser.
        steps: DDIM steps of the whole way from noise; img2img takes the share `init.strength` of them.
    """
    x, T = noise, schedule.T
    if init is not None:
        steps = max(1, round(init.strength * steps))
        T = max(steps, round(init.strength * schedule.T))
        x = schedule.add_noise(init.latents, noise, ddim_timesteps(steps, T)[-1].to(noise.device))
    timesteps, camera, n_view = ddim_timesteps(steps, T), condition.camera, condition.n_view
    return ddim_sample(denoise, x, condition, camera, n_view, schedule, timesteps, eta, generator, on_step)


@torch.no_grad()
def inpaint_latents(
    denoise: Denoiser,
    z: Tensor,
    hole: Tensor,
    condition: Condition,
    schedule: Schedule,
    steps: int = 50,
    repeats: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample latents like `z` (B, C, h, w) where `hole` (B, 1, h, w) is 1, and keep them where it is 0.

    The known part gets the noise of each step, so that the rest is sampled to fit it (RePaint, Lugmayr et al. 2022,
    arXiv 2201.09865, algorithm 1; in latents as Avrahami et al. 2023, arXiv 2206.02779).

    Args:
        denoise: a guided denoiser.
        repeats: times each step is taken; noise is added again before a repetition (RePaint's resampling).
    """
    timesteps = ddim_timesteps(steps, schedule.T)
    alphas, alphas_prev = ddim_alphas(schedule, timesteps)
    x = fresh_noise(z, generator)
    for i in reversed(range(len(timesteps))):
        t = torch.full((len(z),), int(timesteps[i]), device=z.device)
        back = (alphas[i] / alphas_prev[i]).float()
        for repeat in range(repeats):
            if repeat:
                x = back.sqrt() * x + (1 - back).sqrt() * fresh_noise(x, generator)
            known = schedule.add_noise(z, fresh_noise(z, generator), t)
            x = hole * x + (1 - hole) * known
            eps = denoise(x, t, condition, condition.camera, condition.n_view).to(x.dtype)
            x, _ = ddim_step(x, eps, alphas[i], alphas_prev[i])
    return hole * x + (1 - hole) * z


def fresh_noise(like: Tensor, generator: Generators = None) -> Tensor:
    """Return unit Gaussian noise like `like` (B, ...), drawn on the generator's device: on the CPU always the same.

    Several generators each draw an equal share of the B.
    """
    if isinstance(generator, Sequence):
        if len(like) % len(generator):
            raise ValueError(f"{len(like)} images cannot be shared by {len(generator)} generators evenly")
        shares = like.split(len(like) // len(generator))
        return torch.cat([fresh_noise(share, one) for share, one in zip(shares, generator, strict=True)])
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like)
