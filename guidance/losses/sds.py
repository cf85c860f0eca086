"""Base class of distillation losses, SDS and its x0-reconstruction form, for any number of views.

SDS and reconstruction add noise to the latents z of rendered images; a frozen denoiser predicts the noise with
classifier-free guidance. Each loss defines its gradient with respect to z directly; no gradient flows through the
denoiser. The loss is summed over latent pixels and channels and averaged over the B images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from threedgen.config import at
from threedgen.geometry.cameras import Cameras
from threedgen.guidance.guidance import Condition, Denoiser, predict
from threedgen.guidance.losses.options import DistillationConfig
from threedgen.guidance.prior import Prior
from threedgen.guidance.sampling import fresh_noise
from threedgen.guidance.schedule import Schedule
from threedgen.run.memory import to_device

Logs = dict[str, Tensor | float]
Weighting = Literal["one_minus_alpha_bar", "uniform"]


@dataclass(frozen=True)
class RenderedViews:
    """B rendered training views, with gradients, for losses on images.

    Attributes:
        images: (B, H, W, 3) in [0, 1], the prior's input: colours, or normals with guidance_input=normal.
        opacity: (B, H, W, 1) in [0, 1].
        depth: (B, H, W, 1), sum of compositing weight * distance along the ray in world units, not divided by opacity.
        normals: (B, H, W, 3) in [0, 1], opacity * (unit normal in world axes + 1) / 2; None if they are not rendered.
        cameras: cameras of the B views.
        extra: further channels (B, H, W, C) that the representation (of the object) renders, by name.
    """

    images: Tensor
    opacity: Tensor
    depth: Tensor
    normals: Tensor | None
    cameras: Cameras
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class NoisyLatents(NamedTuple):
    """Latents of one distillation step and the prior's noise predictions for them.

    Attributes:
        z: clean latents of the renders, (B, C, h, w) float32.
        x: `z` with added noise, (B, C, h, w).
        t: timesteps, (1,) for all images or (B,).
        eps_ref: noise that the loss subtracts from `eps`, (B, C, h, w); in SDS the added noise.
        eps: noise predicted with classifier-free guidance, (B, C, h, w).
        eps_cond: noise predicted with the prompt, without guidance, (B, C, h, w).
    """

    z: Tensor
    x: Tensor
    t: Tensor
    eps_ref: Tensor
    eps: Tensor
    eps_cond: Tensor


def sds_direction(latents: NoisyLatents, schedule: Schedule, weighting: Weighting = "one_minus_alpha_bar") -> Tensor:
    """Return w(t) (eps - eps_ref), (B, C, h, w), the direction of SDS (DreamFusion, arXiv 2209.14988, eq. 3).

    The gradient of the loss with respect to the latents of B images is this result divided by B. eps, eps_ref and t are
    attributes of `latents`: the noise predicted with guidance, the noise that the loss subtracts from it, and the
    timesteps. w(t) is 1 - alpha_bar_t for the `weighting` "one_minus_alpha_bar", 1 for "uniform".
    """
    _, sigma = schedule.alpha_sigma(latents.t, latents.z)
    return (sigma**2 if weighting == "one_minus_alpha_bar" else 1) * (latents.eps - latents.eps_ref)


def reconstruction_direction(latents: NoisyLatents, schedule: Schedule, std_rescale: float, n_view: int) -> Tensor:
    """Return z - x0, (B, C, h, w): the gradient of 0.5 |z - x0|^2 with respect to z (MVDream, section 3.2).

    z is `latents.z`; x0 are the clean latents that follow from the guided noise `latents.eps`. Large guidance scales
    oversaturate x0, so `rescale_std` moves its standard deviation, over the `n_view` views of an object, towards that
    of x0 without guidance: not at all for `std_rescale` = 0, fully for 1. With 0, this is SDS with
    w(t) = sqrt((1 - alpha_bar_t) / alpha_bar_t).
    """
    x0 = schedule.x0_from_eps(latents.x, latents.eps, latents.t)
    if std_rescale > 0:
        x0_cond = schedule.x0_from_eps(latents.x, latents.eps_cond, latents.t)
        x0 = rescale_std(x0, x0_cond, std_rescale, n_view)
    return latents.z - x0


def rescale_std(x0: Tensor, x0_cond: Tensor, share: float, n_view: int) -> Tensor:
    """Move the standard deviation of clean latents `x0` towards that of `x0_cond` (Lin et al. 2023, eq. 15).

    `x0` is predicted with classifier-free guidance, which exaggerates the contrast, `x0_cond` with the prompt but
    without guidance; both are (B, ...). The result (B, ...) is share * rescaled + (1 - share) * x0, where `rescaled` is
    `x0` multiplied by a factor, so that its standard deviation is that of `x0_cond`. The standard deviations are those
    of all values of `n_view` consecutive images, the views of an object: with one factor per image, the views would
    differ in contrast.
    """
    groups, groups_cond = (part.reshape(len(part) // n_view, -1) for part in (x0, x0_cond))
    factor = (groups_cond.std(dim=1) + 1e-8) / (groups.std(dim=1) + 1e-8)
    factor = factor.repeat_interleave(n_view).reshape(-1, *[1] * (x0.dim() - 1))
    return share * factor * x0 + (1 - share) * x0


def gradient_loss(latents: Tensor, direction: Tensor, t: Tensor) -> tuple[Tensor, Logs]:
    """Build a loss with a given gradient with respect to the latents: 0.5 |z - stopgrad(z - direction)|^2 / B.

    Args:
        latents: z, (B, C, h, w).
        direction: B times the gradient, (B, C, h, w). Non-finite values (overflow in half precision) become zero. If no
            value is finite they stay, so that the run fails.
        t: timesteps, for the log only.

    Returns:
        The loss, a scalar, and metrics to log by name: the norm of the gradient and the mean timestep.
    """
    finite = direction.isfinite()
    direction = torch.where(finite | ~finite.any(), direction, 0.0)
    count = len(latents)
    target = latents.detach().float() - direction
    loss = 0.5 * (latents.float() - target).square().sum() / count
    return loss, {"grad_norm": direction.norm() / count, "t": t.float().mean()}


class Distillation(nn.Module):
    """Base class of distillation losses on the latents of B rendered views.

    A call (`forward`) takes the clean latents (B, C, h, w), the prior's denoiser, the condition (text, cameras,
    reference image), the optimisation step and a random generator. It samples timesteps and noise, adds the noise to
    the latents and lets the prior predict it (`predictions`). It returns a scalar loss and metrics to log.

    The gradient of the loss with respect to the clean latents is `direction` / B, because losses are means over the B
    images. Every subclass implements the method `direction`: (noisy latents and noise predictions, condition,
    optimisation step) -> (B, C, h, w). It may also override `predictions`, and `make_parameters` if it has parameters
    that are trained together with the object.

    Attributes:
        empty_text: embedding (1, L, D) of the empty prompt, set by the caller if the loss uses it
            (`options.empty_prompt`) and the run has a negative prompt; else None.
        prompt: text of the prompt, set by the caller; for losses with a text encoder of their own.
    """

    empty_text: Tensor | None
    prompt = ""

    def __init__(
        self,
        options: DistillationConfig,
        schedule: Schedule,
        max_steps: int | None = None,
        prior: Prior | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Build the loss for the noise `schedule` of a prior.

        Args:
            options: config of the loss.
            max_steps: number of optimisation steps of the run. Needed if the value of an option is a schedule in
                percent of the run, such as {"0%": 0.98, "50%": 0.5}: linear from 0.98 to 0.5 in the first half, then
                constant. Else it may be None.
            prior, generator: for losses with trained parameters, such as VSD's LoRA on the UNet of `prior`; the
                generator samples their initial values. None for other losses.
        """
        super().__init__()
        self.options: Any = options
        self.schedule, self.max_steps = schedule, max_steps
        self.register_buffer("empty_text", None, persistent=False)
        self.make_parameters(prior, generator)

    def make_parameters(self, prior: Prior | None, generator: torch.Generator | None) -> None:
        """Create the trainable parameters of the loss, here none. A subclass with parameters overrides this method.

        The parameters extend the UNet of `prior`; `generator` samples their initial values.
        """

    def value(self, name: str, step: int) -> float:
        """Return the value of the config option `name` at an optimisation step; it may change during the run."""
        return at(getattr(self.options, name), step, self.max_steps)

    def sample_noise(
        self, latents: Tensor, n_view: int, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Logs]:
        """Sample timesteps and noise for the latents (B, C, h, w) of one optimisation step.

        The timesteps are uniform between the options `min_step_percent` and `max_step_percent`, fractions of the
        number T of training timesteps. These options may change with the optimisation step `step`.

        Returns:
            Timesteps: one for all images, (1,). If the option `timestep_per` is "group" and there are several objects,
                (B,), equal for the `n_view` consecutive views of an object.
            Noise: (B, C, h, w), unit Gaussian.
            Metrics to log: lowest and highest allowed timestep.
        """
        T, percents = self.schedule.T, (self.value("min_step_percent", step), self.value("max_step_percent", step))
        low, high = sorted(min(int(T * percent), T - 1) for percent in percents)
        groups = len(latents) // n_view if self.options.timestep_per == "group" else 1
        t = torch.randint(low, high + 1, (groups,), generator=generator, device=generator.device)
        t = to_device(t.repeat_interleave(n_view) if groups > 1 else t, latents.device)
        return t, fresh_noise(latents.float(), generator), {"t_min": float(low), "t_max": float(high)}

    def predictions(
        self, z: Tensor, t: Tensor, noise: Tensor, denoise: Denoiser, condition: Condition, step: int, rng: Generator
    ) -> NoisyLatents:
        """Add `noise` to clean latents `z`, both (B, C, h, w), predict the noise, and return all as `NoisyLatents`.

        There are two predictions: with classifier-free guidance, and with the prompt but without guidance. Some losses
        override this method; `forward` calls it without gradients. `t` are timesteps, (1,) or (B,). `denoise` predicts
        noise without guidance; `condition` has text, cameras and reference image of the views. `rng` is the random
        generator of the optimisation step `step`.
        """
        x = self.schedule.add_noise(z, noise, t)
        return NoisyLatents(z, x, t, noise, *predict(denoise, x, t, condition, self.value("guidance_scale", step)))

    def direction(self, latents: NoisyLatents, condition: Condition, step: int) -> Tensor:
        """Return the gradient of the loss with respect to the B clean latents, times B: (B, C, h, w).

        Each subclass implements this method; `forward` calls it without gradients. `latents` are the result of
        `predictions`: clean and noisy latents, timesteps and predicted noise. `condition` has text and cameras of the
        views; `step` is the optimisation step.
        """
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
        """Return the loss, a scalar, and metrics to log by name.

        Args:
            latents: the views encoded by the prior, (B, C, h, w), with gradients.
            denoise: `Prior.denoise`, which predicts noise without guidance.
            condition: text, cameras and reference image of the views.
            step: optimisation step.
            generator: CPU random generator of this step.
            views: the B rendered views, for losses on images; the losses of this package do not use them.
        """
        t, noise, logs = self.sample_noise(latents, condition.n_view, step, generator)
        with torch.no_grad():
            noisy = self.predictions(latents.float(), t, noise, denoise, condition, step, generator)
            direction = self.direction(noisy, condition, step)
        loss, more = gradient_loss(latents, direction, t)
        return loss, more | logs


class SDS(Distillation):
    """Score distillation sampling: the gradient with respect to the latents of B images is w(t) (eps - noise) / B.

    noise is the noise added to the latents, eps its prediction with guidance. w(t) is 1 - alpha_bar_t, or 1 with the
    option `weighting` "uniform".
    """

    def direction(self, latents: NoisyLatents, condition: Condition, step: int) -> Tensor:
        return sds_direction(latents, self.schedule, self.options.weighting)


class Reconstruction(Distillation):
    """Loss 0.5 |z - x0|^2 / B for the latents z of B images (MVDream, section 3.2).

    x0 are the clean latents that the prior predicts with guidance from z with added noise; they have no gradient. The
    option `recon_std_rescale` in [0, 1] moves their standard deviation towards that of the prediction without guidance.
    """

    def direction(self, latents: NoisyLatents, condition: Condition, step: int) -> Tensor:
        rescale = self.value("recon_std_rescale", step)
        return reconstruction_direction(latents, self.schedule, rescale, condition.n_view)
