"""DDIM sampling of latents (Song et al. 2021, arXiv 2010.02502): from noise, img2img, inpainting."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .guidance import Condition, Denoiser
from .schedule import Schedule

Generators = torch.Generator | Sequence[torch.Generator] | None
OnStep = Callable[[int, int], object]
"""Callback with (number of steps done, total number of steps). It is called before the first and after each step."""


class InitLatents(NamedTuple):
    """Start of an img2img sample: clean latents (B, C, h, w) and the noise strength in (0, 1]."""

    latents: Tensor
    strength: float


def no_callback(done: int, steps: int) -> None:
    """Do nothing; the default of `on_step`."""


def before_steps(callback: Callable[[], None]) -> OnStep:
    """Return an `OnStep` callback that calls `callback` without arguments before each step, not after the last."""
    return lambda done, steps: callback() if done < steps else None


def ddim_timesteps(steps: int, T: int = 1000) -> Tensor:
    """Return the ascending time steps at which DDIM calls the network, (steps,) int64: floor(i T / steps) + 1.

    They are those of the ldm code base whenever `steps` divides T; with steps = T they are 0..T-1.

    Args:
        T: number of training timesteps, or fewer for img2img, which starts from less noise.

    Raises:
        ValueError: steps is not in 1..T.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps = {steps} is out of range; choose 1 to {T}")
    # With steps = T the offset of 1 would give t = T, which has no alpha_bar.
    return torch.arange(steps) * T // steps + (1 if steps < T else 0)


def ddim_alphas(schedule: Schedule, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha_bar before and after each DDIM step, two tensors (steps,) float64 on the CPU.

    Entry i of the first is alpha_bar at timesteps[i], of the second at timesteps[i - 1], because sampling visits the
    ascending `timesteps` (steps,) in reverse. Sampling ends at alpha_bar[0], not at 1, as in Stable Diffusion's config
    (set_alpha_to_one=False in diffusers).
    """
    alpha_bar = schedule.alpha_bar.cpu().double()
    a = alpha_bar[timesteps]
    return a, torch.cat([alpha_bar[:1], a[:-1]])


def ddim_sigma(a: Tensor, a_prev: Tensor, eta: float) -> Tensor:
    """Return the standard deviation of the noise that a step adds (eq. 16), like `a` and `a_prev`, see `ddim_step`."""
    return eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)).clamp(min=0).sqrt()


def ddim_step(
    x: Tensor, eps: Tensor, a: Tensor, a_prev: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take one DDIM step (eq. 12).

    Args:
        x, eps: noisy latents and the noise predicted in them, each (B, C, h, w).
        a, a_prev: alpha_bar before and after the step, scalar tensors.
        eta: 0 is deterministic DDIM, 1 has the noise of DDPM.
        noise: unit Gaussian noise like `x`. Raises ValueError if it is missing and `eta` > 0.

    Returns:
        The latents after the step and the predicted clean latents, both like `x`.
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
    """Denoise latents by DDIM and return clean latents (B, C, h, w).

    Args:
        denoise: a denoiser; for classifier-free guidance wrap it in `guided` and pass a `Condition` as `text`.
        x_T: latents (B, C, h, w) with the noise of the last of `timesteps`.
        text, camera, n_view: arguments of `denoise`.
        timesteps: ascending (steps,), see `ddim_timesteps`.
        eta: 0 is deterministic DDIM, 1 has the noise of DDPM.
        generator: random generator of the noise that is added when `eta` > 0.
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
    """Sample clean latents (B, C, h, w) from noise, or by img2img (SDEdit, Meng et al. 2022, arXiv 2108.01073).

    Args:
        denoise: a denoiser wrapped in `guided`.
        noise: unit Gaussian noise (B, C, h, w).
        condition: text and cameras of the B images.
        steps: DDIM steps from pure noise; img2img takes `init.strength` times as many, at least one.
        init: img2img start; None: start from pure noise.
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
    """Inpaint latents with a model that was not trained for it.

    Before each step the known latents, with the noise of that step, replace the sample outside the hole (RePaint,
    Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1; in latents as Avrahami et al. 2023, arXiv 2206.02779).

    Args:
        denoise: a denoiser wrapped in `guided`.
        z: known clean latents (B, C, h, w).
        hole: (B, 1, h, w), 1 where latents are sampled, 0 where `z` is kept.
        condition: text and cameras of the B images.
        repeats: times that each step is taken; noise is added again before a repetition (RePaint's resampling).

    Returns:
        Clean latents like `z`, equal to `z` outside the hole.
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
    """Return unit Gaussian noise with shape, type and device of `like` (B, ...).

    The noise is sampled in float32 on the generator's device, so a CPU generator gives the same noise for every device.
    Of n generators, each samples B / n consecutive images. Raises ValueError if n does not divide B.
    """
    if isinstance(generator, Sequence):
        if len(like) % len(generator):
            raise ValueError(f"{len(like)} images cannot be shared by {len(generator)} generators evenly")
        shares = like.split(len(like) // len(generator))
        return torch.cat([fresh_noise(share, one) for share, one in zip(shares, generator, strict=True)])
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like)
