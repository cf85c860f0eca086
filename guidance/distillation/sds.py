"""A prior's opinion as a loss: score distillation (SDS) and its reconstruction form, any number of views.

Both add noise to the latents z of rendered images, let a frozen denoiser predict it with classifier-free
guidance, and return a loss whose gradient with respect to z says where to go. The denoiser itself is never
differentiated. (The form that trains a copy of it beside the object is in ``vsd.py``.)
B counts images, not groups: the loss is a sum over pixels and a mean over images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from threedgen.config import at
from threedgen.guidance.diffusion import (
    Denoiser,
    Negatives,
    Schedule,
    TextPair,
    branches,
    combine,
    combine_perp_neg,
    fresh_noise,
    per_image,
)
from threedgen.guidance.options import DistillationConfig
from threedgen.guidance.prior import Prior

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
    negatives: Negatives | None = None,
) -> tuple[Tensor, Logs]:
    """Classic SDS (DreamFusion, Poole et al. 2022, eq. 3): d loss / d z = w(t) (eps - noise) / B.

    ``latents`` (B,C,h,w), views fastest, B a multiple of ``n_view``; ``text`` = (cond, uncond), each (n,L,D)
    with n dividing B; ``camera`` (B,16) or None; ``t`` (1,) for all or (B,); ``noise`` like the latents. w(t)
    is 1 - alpha_bar_t, or 1 ("uniform"). ``negatives``: see ``combine_perp_neg``.
    """
    with torch.no_grad():
        z = latents.float()
        x = schedule.add_noise(z, noise, t)
        eps, _ = predict(denoise, x, t, text, camera, n_view, guidance_scale, negatives)
        direction = eps - noise
        if weighting == "one_minus_alpha_bar":
            _, sigma = schedule.alpha_sigma(t, z)
            direction = sigma**2 * direction
    return follow(latents, direction, t)


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
    negatives: Negatives | None = None,
) -> tuple[Tensor, Logs]:
    """The x0-reconstruction loss of MVDream (Shi et al. 2023, section 3.2): 0.5 |z - x0|^2 / B.

    x0 is the image that the guided prediction amounts to, rescaled towards the spread of the conditional
    prediction alone, because large guidance scales oversaturate. Without the rescale it is SDS with
    w(t) = sqrt((1-a) / a). Arguments as in ``sds_eps``; ``recon_std_rescale`` in [0, 1], 0: no rescale.
    """
    with torch.no_grad():
        z = latents.float()
        x = schedule.add_noise(z, noise, t)
        eps, eps_cond = predict(denoise, x, t, text, camera, n_view, guidance_scale, negatives)
        x0 = schedule.x0_from_eps(x, eps, t)
        if recon_std_rescale > 0:
            x0 = rescale_std(x0, schedule.x0_from_eps(x, eps_cond, t), recon_std_rescale, n_view)
        direction = z - x0
    return follow(latents, direction, t)


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


def predict(
    denoise: Denoiser,
    x: Tensor,
    t: Tensor,
    text: TextPair,
    camera: Tensor | None,
    n_view: int,
    guidance_scale: float,
    negatives: Negatives | None = None,
) -> tuple[Tensor, Tensor]:
    """(guided eps, conditional eps); at scale 1 they are the same and the other branch is not computed."""
    if negatives is not None:
        texts = (*text, *negatives.text)
        eps_cond, eps_uncond, *eps_negative = branches(denoise, x, t, texts, camera, n_view)
        eps = combine_perp_neg(eps_cond, eps_uncond, eps_negative, negatives.weights, guidance_scale)
        return eps, eps_cond
    if guidance_scale == 1:
        eps = denoise(x, t.reshape(-1).expand(len(x)), per_image(text[0], len(x)), camera, n_view).float()
        return eps, eps
    eps_cond, eps_uncond = branches(denoise, x, t, text, camera, n_view)
    return combine(eps_cond, eps_uncond, guidance_scale), eps_cond


def follow(latents: Tensor, direction: Tensor, t: Tensor) -> tuple[Tensor, Logs]:
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


class Distillation(nn.Module):
    """What the losses share: t drawn from the scheduled range, and fresh noise.

    A module, because a loss may have parameters of its own, which learn beside the object.
    """

    pure: Callable[..., tuple[Tensor, Logs]]

    def __init__(
        self,
        options: DistillationConfig,
        schedule: Schedule,
        max_steps: int | None = None,
        prior: Prior | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """``schedule`` is the prior's; ``max_steps`` the length of the run, for options in percents of it.

        ``prior`` and ``generator`` are for losses that learn: a network to copy, and random initial weights.
        """
        super().__init__()
        self.options: Any = options
        self.schedule, self.max_steps = schedule, max_steps

    def value(self, name: str, step: int) -> float:
        """The option ``name`` at optimisation step ``step``."""
        return at(getattr(self.options, name), step, self.max_steps)

    def more(self, step: int) -> dict[str, Any]:
        """Arguments that only this loss has."""
        raise NotImplementedError

    def draw(self, latents: Tensor, n_view: int, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Logs]:
        """t, (1,) for all images or (B,), noise like the latents, and the range of t, to be logged."""
        low, high = self.value("min_step_percent", step), self.value("max_step_percent", step)
        groups = len(latents) // n_view if self.options.timestep_per == "group" else 1
        t = sample_timestep(low, high, generator, self.schedule.T, groups)
        t = (t.repeat_interleave(n_view) if groups > 1 else t).to(latents.device)
        t_min, t_max = timestep_range(low, high, self.schedule.T)
        return t, fresh_noise(latents.float(), generator), {"t_min": float(t_min), "t_max": float(t_max)}

    def forward(
        self,
        latents: Tensor,
        denoise: Denoiser,
        text_cond: Tensor,
        text_uncond: Tensor,
        camera: Tensor | None,
        n_view: int,
        step: int,
        generator: torch.Generator,
        *,
        negatives: Negatives | None = None,
        plain: Tensor | None = None,
        c2w: Tensor | None = None,
    ) -> tuple[Tensor, Logs]:
        """(loss, numbers to log) of ``latents`` (B,C,h,w); first t, then noise come from ``generator``.

        ``negatives``: texts to stay away from. ``plain`` (1,L,D), the prompt without words for the view, and the poses
        ``c2w`` (B,4,4) are for losses that learn.
        """
        t, noise, drawn = self.draw(latents, n_view, step, generator)
        loss, logs = self.pure(
            latents,
            denoise,
            (text_cond, text_uncond),
            camera,
            n_view,
            schedule=self.schedule,
            t=t,
            noise=noise,
            guidance_scale=self.value("guidance_scale", step),
            negatives=negatives,
            **self.more(step),
        )
        return loss, logs | drawn


class SDS(Distillation):
    """``sds_eps`` with the options of SDSConfig."""

    pure = staticmethod(sds_eps)

    def more(self, step: int) -> dict[str, Any]:
        return {"weighting": self.options.weighting}


class Reconstruction(Distillation):
    """``reconstruction`` with the options of ReconstructionConfig."""

    pure = staticmethod(reconstruction)

    def more(self, step: int) -> dict[str, Any]:
        return {"recon_std_rescale": self.value("recon_std_rescale", step)}
