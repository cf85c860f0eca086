"""A prior's opinion as a loss: score distillation (SDS) and its reconstruction form, any number of views.

Both add noise to the latents z of rendered images, let a frozen denoiser predict it with classifier-free
guidance, and return a loss whose gradient with respect to z says where to go. The denoiser itself is never
differentiated. (The form that trains a copy of it beside the object is in ``vsd.py``.)
B counts images, not groups: the loss is a sum over pixels and a mean over images.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from threedgen.config import at
from threedgen.guidance.diffusion import Conditions, Denoiser, fresh_noise, predict
from threedgen.guidance.distillation.options import DistillationConfig
from threedgen.guidance.prior import Prior
from threedgen.guidance.schedule import Schedule

Logs = dict[str, Tensor | float]
Weighting = Literal["one_minus_alpha_bar", "uniform"]


class Noised(NamedTuple):
    """Clean latents z (B,C,h,w) float32, what noise at ``t`` (1,) or (B,) makes of them, and what the prior sees there:
    the guided prediction of the noise, and the conditional one alone."""

    z: Tensor
    x: Tensor
    t: Tensor
    noise: Tensor
    eps: Tensor
    eps_cond: Tensor


def sds_direction(seen: Noised, schedule: Schedule, weighting: Weighting = "one_minus_alpha_bar") -> Tensor:
    """Classic SDS (DreamFusion, Poole et al. 2022, eq. 3): w(t) (eps - noise); w(t) is 1 - alpha_bar_t, or 1."""
    _, sigma = schedule.alpha_sigma(seen.t, seen.z)
    return (sigma**2 if weighting == "one_minus_alpha_bar" else 1) * (seen.eps - seen.noise)


def reconstruction_direction(seen: Noised, schedule: Schedule, std_rescale: float, n_view: int) -> Tensor:
    """The x0-reconstruction of MVDream (Shi et al. 2023, section 3.2): z - x0, the gradient of 0.5 |z - x0|^2.

    x0 is the image that the guided prediction amounts to, rescaled towards the spread of the conditional
    prediction alone, because large guidance scales oversaturate. Without the rescale it is SDS with
    w(t) = sqrt((1-a) / a). ``std_rescale`` in [0, 1], 0: no rescale.
    """
    x0 = schedule.x0_from_eps(seen.x, seen.eps, seen.t)
    if std_rescale > 0:
        x0 = rescale_std(x0, schedule.x0_from_eps(seen.x, seen.eps_cond, seen.t), std_rescale, n_view)
    return seen.z - x0


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
    """What the losses share: t drawn from the scheduled range, fresh noise, and what the prior makes of them.

    A module, because a loss may have parameters of its own, which learn beside the object.
    """

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
        self.begin(prior, generator)

    def begin(self, prior: Prior | None, generator: torch.Generator | None) -> None:
        """Makes the parameters of a loss that learns."""

    def value(self, name: str, step: int) -> float:
        """The option ``name`` at optimisation step ``step``."""
        return at(getattr(self.options, name), step, self.max_steps)

    def draw(self, latents: Tensor, n_view: int, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Logs]:
        """t, (1,) for all images or (B,), noise like the latents, and the range of t, to be logged."""
        percents = self.value("min_step_percent", step), self.value("max_step_percent", step)
        low, high = timestep_range(*percents, self.schedule.T)
        groups = len(latents) // n_view if self.options.timestep_per == "group" else 1
        t = torch.randint(low, high + 1, (groups,), generator=generator, device=generator.device)
        t = (t.repeat_interleave(n_view) if groups > 1 else t).to(latents.device)
        return t, fresh_noise(latents.float(), generator), {"t_min": float(low), "t_max": float(high)}

    def direction(self, seen: Noised, given: Conditions, step: int) -> Tensor:
        """B times d loss / d z, like z."""
        raise NotImplementedError

    def forward(
        self, latents: Tensor, denoise: Denoiser, given: Conditions, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Logs]:
        """(loss, numbers to log) of ``latents`` (B,C,h,w); first t, then noise come from ``generator``."""
        t, noise, drawn = self.draw(latents, given.n_view, step, generator)
        with torch.no_grad():
            z = latents.float()
            x = self.schedule.add_noise(z, noise, t)
            seen = Noised(z, x, t, noise, *predict(denoise, x, t, given, self.value("guidance_scale", step)))
            direction = self.direction(seen, given, step)
        loss, logs = follow(latents, direction, t)
        return loss, logs | drawn


class SDS(Distillation):
    """``sds_direction`` with the options of SDSConfig."""

    def direction(self, seen: Noised, given: Conditions, step: int) -> Tensor:
        return sds_direction(seen, self.schedule, self.options.weighting)


class Reconstruction(Distillation):
    """``reconstruction_direction`` with the options of ReconstructionConfig."""

    def direction(self, seen: Noised, given: Conditions, step: int) -> Tensor:
        rescale = self.value("recon_std_rescale", step)
        return reconstruction_direction(seen, self.schedule, rescale, given.n_view)
