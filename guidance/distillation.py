"""A prior's opinion as a loss: score distillation (SDS) and its reconstruction form, any number of views.

Both add noise to the latents z of rendered images, let a frozen denoiser predict it with classifier-free
guidance, and return a loss whose gradient with respect to z says where to go. The denoiser itself is never
differentiated.
B counts images, not groups: the loss is a sum over pixels and a mean over images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from threedgen.config import at

from .diffusion import Denoiser, Schedule, TextPair, both_branches, combine, fresh_noise, per_image
from .options import ReconstructionConfig, SDSConfig

Logs = dict[str, Tensor | float]
Weighting = Literal["one_minus_alpha_bar", "uniform"]


def sds_eps(
    latents: Tensor,
    denoise: Denoiser,
    text: TextPair,
    camera: Tensor | None,
    n_view: int,
    *,
    schedule: Schedule,
    t: Tensor,
    noise: Tensor,
    guidance_scale: float,
    weighting: Weighting = "one_minus_alpha_bar",
) -> tuple[Tensor, Logs]:
    """Classic SDS (DreamFusion, Poole et al. 2022, eq. 3): d loss / d z = w(t) (eps - noise) / B.

    ``latents`` (B,C,h,w), views fastest, B a multiple of ``n_view``; ``text`` = (cond, uncond), each (n,L,D)
    with n dividing B; ``camera`` (B,16) or None; ``t`` (1,) for all or (B,); ``noise`` like the latents. w(t)
    is 1 - alpha_bar_t, or 1 ("uniform").
    """
    with torch.no_grad():
        z = latents.float()
        x = schedule.add_noise(z, noise, t)
        eps, _ = _predict(denoise, x, t, text, camera, n_view, guidance_scale)
        direction = eps - noise
        if weighting == "one_minus_alpha_bar":
            _, sigma = schedule.alpha_sigma(t, z)
            direction = sigma**2 * direction
    return _loss(latents, direction, t)


def reconstruction(
    latents: Tensor,
    denoise: Denoiser,
    text: TextPair,
    camera: Tensor | None,
    n_view: int,
    *,
    schedule: Schedule,
    t: Tensor,
    noise: Tensor,
    guidance_scale: float,
    recon_std_rescale: float = 0.5,
) -> tuple[Tensor, Logs]:
    """The x0-reconstruction loss of MVDream (Shi et al. 2023, section 3.2): 0.5 |z - x0|^2 / B.

    x0 is the image that the guided prediction amounts to, rescaled towards the spread of the conditional
    prediction alone, because large guidance scales oversaturate. Without the rescale it is SDS with
    w(t) = sqrt((1-a) / a). Arguments as in ``sds_eps``; ``recon_std_rescale`` in [0, 1], 0: no rescale.
    """
    with torch.no_grad():
        z = latents.float()
        x = schedule.add_noise(z, noise, t)
        eps, eps_cond = _predict(denoise, x, t, text, camera, n_view, guidance_scale)
        x0 = schedule.x0_from_eps(x, eps, t)
        if recon_std_rescale > 0:
            x0 = rescale_std(x0, schedule.x0_from_eps(x, eps_cond, t), recon_std_rescale, n_view)
        direction = z - x0
    return _loss(latents, direction, t)


def rescale_std(x0: Tensor, x0_cond: Tensor, share: float, n_view: int) -> Tensor:
    """``x0`` (B,...) brought by ``share`` in [0, 1] towards the standard deviation of ``x0_cond``.

    One factor for a group of ``n_view`` images, over all their channels and pixels together: views that were
    rescaled one by one would drift apart in contrast (Lin et al. 2023, eq. 15, for a single image).
    """
    groups, groups_cond = (part.reshape(len(part) // n_view, -1) for part in (x0, x0_cond))
    factor = (groups_cond.std(dim=1) + 1e-8) / (groups.std(dim=1) + 1e-8)
    factor = factor.repeat_interleave(n_view).reshape(-1, *[1] * (x0.dim() - 1))
    return share * factor * x0 + (1 - share) * x0


def timestep_range(min_percent: float, max_percent: float, T: int) -> tuple[int, int]:
    """First and last t allowed, both in 0 .. T-1, for shares of T in [0, 1]. ValueError if out of order."""
    low, high = (min(int(T * percent), T - 1) for percent in (min_percent, max_percent))
    if not 0 <= low <= high:
        bounds = f"min_step_percent {min_percent:g} to max_step_percent {max_percent:g}"
        raise ValueError(f"there is no timestep from {bounds}")
    return low, high


def sample_timestep(
    min_percent: float, max_percent: float, generator: torch.Generator, T: int, count: int = 1
) -> Tensor:
    """``count`` integers, uniform with both ends included, int64 on the generator's device."""
    low, high = timestep_range(min_percent, max_percent, T)
    return torch.randint(low, high + 1, (count,), generator=generator, device=generator.device)


def _predict(
    denoise: Denoiser,
    x: Tensor,
    t: Tensor,
    text: TextPair,
    camera: Tensor | None,
    n_view: int,
    guidance_scale: float,
) -> tuple[Tensor, Tensor]:
    """(guided eps, conditional eps); at scale 1 they are the same and the other branch is not computed."""
    if guidance_scale == 1:
        eps = denoise(x, t.reshape(-1).expand(len(x)), per_image(text[0], len(x)), camera, n_view).float()
        return eps, eps
    eps_cond, eps_uncond = both_branches(denoise, x, t, text, camera, n_view)
    return combine(eps_cond, eps_uncond, guidance_scale), eps_cond


def _loss(latents: Tensor, direction: Tensor, t: Tensor) -> tuple[Tensor, Logs]:
    """0.5 |z - stopgrad(z - direction)|^2 / B, whose gradient is direction / B, and what to log.

    Single values that are not finite (half precision overflows) count as zero. If none is finite they stay,
    so that the run stops instead of going on without its prior.
    """
    finite = direction.isfinite()
    direction = torch.where(finite | ~finite.any(), direction, 0.0)
    count = len(latents)
    target = latents.detach().float() - direction
    loss = 0.5 * (latents.float() - target).square().sum() / count
    return loss, {"grad_norm": direction.norm() / count, "t": t.float().mean()}


class Distillation:
    """What the two losses share: t drawn from the scheduled range, and fresh noise."""

    pure: Callable[..., tuple[Tensor, Logs]]

    def __init__(
        self, options: SDSConfig | ReconstructionConfig, schedule: Schedule, max_steps: int | None = None
    ) -> None:
        """``schedule`` is the prior's; ``max_steps`` the length of the run, for options in percents of it."""
        self.options, self.schedule, self.max_steps = options, schedule, max_steps

    def value(self, name: str, step: int) -> float:
        """The option ``name`` at optimisation step ``step``."""
        return at(getattr(self.options, name), step, self.max_steps)

    def more(self, step: int) -> dict[str, Any]:
        """Arguments that only this loss has."""
        raise NotImplementedError

    def __call__(
        self,
        latents: Tensor,
        denoise: Denoiser,
        text_cond: Tensor,
        text_uncond: Tensor,
        camera: Tensor | None,
        n_view: int,
        step: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Logs]:
        """(loss, numbers to log) of ``latents`` (B,C,h,w); first t, then noise come from ``generator``."""
        low, high = self.value("min_step_percent", step), self.value("max_step_percent", step)
        groups = len(latents) // n_view if self.options.timestep_per == "group" else 1
        t = sample_timestep(low, high, generator, self.schedule.T, groups)
        loss, logs = self.pure(
            latents,
            denoise,
            (text_cond, text_uncond),
            camera,
            n_view,
            schedule=self.schedule,
            t=(t.repeat_interleave(n_view) if groups > 1 else t).to(latents.device),
            noise=fresh_noise(latents.float(), generator),
            guidance_scale=self.value("guidance_scale", step),
            **self.more(step),
        )
        t_min, t_max = timestep_range(low, high, self.schedule.T)
        return loss, logs | {"t_min": float(t_min), "t_max": float(t_max)}


class SDS(Distillation):
    """``sds_eps`` with its options."""

    pure = staticmethod(sds_eps)
    options: SDSConfig

    def more(self, step: int) -> dict[str, Any]:
        return {"weighting": self.options.weighting}


class Reconstruction(Distillation):
    """``reconstruction`` with its options."""

    pure = staticmethod(reconstruction)
    options: ReconstructionConfig

    def more(self, step: int) -> dict[str, Any]:
        return {"recon_std_rescale": self.value("recon_std_rescale", step)}
