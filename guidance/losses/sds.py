"""Score distillation losses: SDS and its x0-reconstruction form, for any number of views.

Both add noise to the latents z of rendered images, let a frozen denoiser predict it with classifier-free guidance, and
return a loss with a given gradient with respect to z; the denoiser itself is not differentiated. B counts images, not
groups of views: the loss is a sum over latent pixels and a mean over images.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from threedgen.config import at
from threedgen.guidance.guidance import Condition, Denoiser, predict
from threedgen.guidance.losses.options import DistillationConfig
from threedgen.guidance.prior import Prior
from threedgen.guidance.sampling import fresh_noise
from threedgen.guidance.schedule import Schedule

from .views import RenderedViews

Logs = dict[str, Tensor | float]
Weighting = Literal["one_minus_alpha_bar", "uniform"]


class NoisyLatents(NamedTuple):
    """Latents of one distillation step and the prior's prediction for them.

    z: clean (B, C, h, w), float32. x: z with noise. t: (1,) or (B,). noise: like z. eps: guided prediction of the
        noise.
    eps_cond: conditional prediction.
    """

    z: Tensor
    x: Tensor
    t: Tensor
    noise: Tensor
    eps: Tensor
    eps_cond: Tensor


def sds_direction(latents: NoisyLatents, schedule: Schedule, weighting: Weighting = "one_minus_alpha_bar") -> Tensor:
    """Return w(t) (eps - noise), like z (DreamFusion, Poole et al. 2022, eq. 3); w(t) is 1 - alpha_bar_t, or 1."""
    _, sigma = schedule.alpha_sigma(latents.t, latents.z)
    return (sigma**2 if weighting == "one_minus_alpha_bar" else 1) * (latents.eps - latents.noise)


def reconstruction_direction(latents: NoisyLatents, schedule: Schedule, std_rescale: float, n_view: int) -> Tensor:
    """Return z - x0, like z: the gradient of 0.5 |z - x0|^2 (MVDream, Shi et al. 2023, section 3.2).

    x0 is the image of the guided prediction, rescaled towards the spread of the conditional one, because large guidance
    scales oversaturate. Without the rescale it is SDS with w(t) = sqrt((1 - a) / a).

    Args:
        std_rescale: in [0, 1]; 0: no rescale.
    """
    x0 = schedule.x0_from_eps(latents.x, latents.eps, latents.t)
    if std_rescale > 0:
        x0_cond = schedule.x0_from_eps(latents.x, latents.eps_cond, latents.t)
        x0 = rescale_std(x0, x0_cond, std_rescale, n_view)
    return latents.z - x0


def rescale_std(x0: Tensor, x0_cond: Tensor, share: float, n_view: int) -> Tensor:
    """Rescale `x0` (B, ...) by `share` in [0, 1] towards the standard deviation of `x0_cond`.

    One factor for each group of `n_view` images, over all their channels and pixels: views that were rescaled one by
    one would differ in contrast (Lin et al. 2023, eq. 15, for a single image).
    """
    groups, groups_cond = (part.reshape(len(part) // n_view, -1) for part in (x0, x0_cond))
    factor = (groups_cond.std(dim=1) + 1e-8) / (groups.std(dim=1) + 1e-8)
    factor = factor.repeat_interleave(n_view).reshape(-1, *[1] * (x0.dim() - 1))
    return share * factor * x0 + (1 - share) * x0


def timestep_range(min_percent: float, max_percent: float, T: int) -> tuple[int, int]:
    """Return the first and the last allowed t in 0..T-1 for shares of T in [0, 1]; ValueError if out of order."""
    low, high = (min(int(T * percent), T - 1) for percent in (min_percent, max_percent))
    if not 0 <= low <= high:
        bounds = f"min_step_percent {min_percent:g} to max_step_percent {max_percent:g}"
        raise ValueError(f"there is no timestep from {bounds}")
    return low, high


def gradient_loss(latents: Tensor, direction: Tensor, t: Tensor) -> tuple[Tensor, Logs]:
    """Return 0.5 |z - stopgrad(z - direction)|^2 / B, whose gradient is direction / B, and values to log.

    Single values that are not finite (half precision overflows) count as zero. If none is finite they stay, so that the
    run fails instead of continuing without its prior.
    """
    finite = direction.isfinite()
    direction = torch.where(finite | ~finite.any(), direction, 0.0)
    count = len(latents)
    target = latents.detach().float() - direction
    loss = 0.5 * (latents.float() - target).square().sum() / count
    return loss, {"grad_norm": direction.norm() / count, "t": t.float().mean()}


class Distillation(nn.Module):
    """Base class of distillation losses: a random t of the scheduled range, fresh noise, and the prior's prediction.

    A subclass defines `direction`. It is a module, because a loss may have trainable parameters (VSD).
    """

    def __init__(
        self,
        options: DistillationConfig,
        schedule: Schedule,
        max_steps: int | None = None,
        prior: Prior | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Build the loss.

        Args:
            schedule: that of the prior.
            max_steps: length of the run, for options in percents of it.
            prior, generator: for losses with trainable parameters: a network to copy, and random initial weights.
        """
        super().__init__()
        self.options: Any = options
        self.schedule, self.max_steps = schedule, max_steps
        self.make_parameters(prior, generator)

    def make_parameters(self, prior: Prior | None, generator: torch.Generator | None) -> None:
        """Create the trainable parameters of a loss that has any."""

    def value(self, name: str, step: int) -> float:
        """Return the option `name` at an optimisation step."""
        return at(getattr(self.options, name), step, self.max_steps)

    def sample_noise(
        self, latents: Tensor, n_view: int, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Logs]:
        """Return t, (1,) for all images or (B,), noise like the latents, and the range of t to log."""
        percents = self.value("min_step_percent", step), self.value("max_step_percent", step)
        low, high = timestep_range(*percents, self.schedule.T)
        groups = len(latents) // n_view if self.options.timestep_per == "group" else 1
        t = torch.randint(low, high + 1, (groups,), generator=generator, device=generator.device)
        t = (t.repeat_interleave(n_view) if groups > 1 else t).to(latents.device)
        return t, fresh_noise(latents.float(), generator), {"t_min": float(low), "t_max": float(high)}

    def direction(self, latents: NoisyLatents, condition: Condition, step: int) -> Tensor:
        """Return B times the gradient with respect to z, like z."""
        raise NotImplementedError

    def forward(
        self,
        latents: Tensor,
        denoise: Denoiser,
        condition: Condition,
        step: int,
        generator: torch.Generator,
        views: RenderedViews | None = None,
    ) -> tuple[Tensor, Logs]:
        """Return the loss of `latents` (B, C, h, w) and values to log; t, then the noise come from `generator`.

        A loss on images overrides this method and uses `views`.
        """
        t, noise, logs = self.sample_noise(latents, condition.n_view, step, generator)
        with torch.no_grad():
            z = latents.float()
            x = self.schedule.add_noise(z, noise, t)
            eps, eps_cond = predict(denoise, x, t, condition, self.value("guidance_scale", step))
            direction = self.direction(NoisyLatents(z, x, t, noise, eps, eps_cond), condition, step)
        loss, more = gradient_loss(latents, direction, t)
        return loss, more | logs


class SDS(Distillation):
    """Score distillation sampling, see `sds_direction`."""

    def direction(self, latents: NoisyLatents, condition: Condition, step: int) -> Tensor:
        return sds_direction(latents, self.schedule, self.options.weighting)


class Reconstruction(Distillation):
    """Reconstruction of the predicted image, see `reconstruction_direction`."""

    def direction(self, latents: NoisyLatents, condition: Condition, step: int) -> Tensor:
        rescale = self.value("recon_std_rescale", step)
        return reconstruction_direction(latents, self.schedule, rescale, condition.n_view)
