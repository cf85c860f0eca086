"""Losses on DDIM inversion: interval score matching (ISM) and score distillation via inversion (SDI).

DDIM inversion runs DDIM sampling (Song et al. 2021, eq. 12) backwards: from the clean latents of a render to noisy
latents, with the noise that the prior predicts. This noise depends on the render and varies less than random noise.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import torch
from torch import Generator, Tensor

from threedgen.guidance.guidance import Condition, Denoiser, guided, predict, predict_for_texts
from threedgen.guidance.sampling import Generators, Predict, fresh_noise
from threedgen.guidance.schedule import Schedule
from threedgen.run.memory import to_device

from .sds import Distillation, NoisyLatents, reconstruction_direction


def inversion_timesteps(start: Tensor, end: Tensor, interval: int) -> list[Tensor]:
    """Return at least two ascending timesteps, from `start` to `end` in steps of `interval`.

    `start`, `end` and the results have the same shape: (1,), a timestep for all images, or (B,), one per image.
    `interval` is a number of timesteps. The last step may be shorter. An image that reaches its `end` before the other
    images stays there.
    """
    steps = max(1, ceil(int((end - start).max()) / interval))
    return [*(torch.minimum(start + k * interval, end) for k in range(steps)), end]


def invert(
    predict_noise: Predict,
    schedule: Schedule,
    x: Tensor,
    timesteps: Sequence[Tensor],
    eta: float = 0.0,
    generator: Generators = None,
) -> tuple[Tensor, Tensor]:
    """Move latents to a higher noise level by DDIM inversion; call `predict_noise` once per step.

    Args:
        predict_noise: function (latents (B, C, h, w), timesteps (B,) or (1,)) -> predicted noise.
        x: latents (B, C, h, w) at the first timestep.
        timesteps: N >= 2 ascending timesteps, each (1,) or (B,), for N - 1 steps.
        eta: amount of fresh noise in each step; 0: none, 1: as much as in DDPM (Song et al. 2021, eq. 16).
        generator: random generator of the fresh noise; None: torch's global generator.

    Returns:
        Latents at the last timestep, and the noise predicted at the last but one timestep, both (B, C, h, w).
    """
    eps = torch.zeros_like(x)
    for now, then in pairwise(timesteps):
        eps = predict_noise(x, now)
        x = schedule.add_noise(schedule.x0_from_eps(x, eps, now), eps, then)
        if eta > 0:  # DDIM's variance, eq. 16
            (alpha, sigma), (alpha_then, sigma_then) = schedule.alpha_sigma(now, x), schedule.alpha_sigma(then, x)
            std = sigma / sigma_then * (1 - (alpha_then / alpha) ** 2).clamp(min=0).sqrt()
            x = x + eta * std * fresh_noise(x, generator)
    return x, eps


def unconditional(denoise: Denoiser, condition: Condition) -> Predict:
    """Return a function (latents (B, C, h, w), timesteps) -> noise without the prompt, for `invert`.

    The noise is predicted as for the unconditional branch of guidance: for the second text of `condition` (the negative
    or empty prompt) and without the reference image. If `condition.single_view_uncond` is True, each view is denoised
    separately, without its camera.
    """
    text = condition.text[1:]
    if condition.single_view_uncond:
        return lambda x, t: predict_for_texts(denoise, x, t, text, None, 1)[0]
    image = condition.reference_kwargs(False)
    return lambda x, t: predict_for_texts(denoise, x, t, text, condition.camera, condition.n_view, **image)[0]


class ISM(Distillation):
    """Interval score matching (Liang et al. 2023, "LucidDreamer", arXiv 2311.11284, section 4.1).

    The loss compares noise predictions at two timesteps s < t of a DDIM inversion: DDIM sampling backwards, from clean
    to noisy. t is sampled, and s = t - `interval`. The inversion starts at
    t_0 = s - `inversion_steps` * `inversion_interval`. Negative values of s and t_0 become 0, so that small t take
    fewer steps. `interval`, `inversion_steps` and `inversion_interval` are options.

    1. Random noise moves the clean latents of the renders to timestep t_0.
    2. DDIM inversion without text (with the negative or empty prompt) goes on from there, in steps of
       `inversion_interval` timesteps, to the noisy latents x_s at s. One further step, from s to t, gives x_t.
    3. The gradient with respect to the clean latents of B images is w(t) (eps_t - eps_s) / B. eps_t is the noise
       predicted for x_t with classifier-free guidance, eps_s that for x_s without text. As in the authors' code,
       w(t) = sqrt((1 - alpha_bar_t) / alpha_bar_t).
    """

    def predictions(
        self, z: Tensor, t: Tensor, noise: Tensor, denoise: Denoiser, condition: Condition, step: int, rng: Generator
    ) -> NoisyLatents:
        options = self.options
        s = (t - int(self.value("interval", step))).clamp(min=0)
        start = (s - options.inversion_interval * options.inversion_steps).clamp(min=0)
        timesteps = [*inversion_timesteps(start, s, options.inversion_interval), t]
        x = self.schedule.add_noise(z, noise, start)
        x, eps_s = invert(unconditional(denoise, condition), self.schedule, x, timesteps)
        return NoisyLatents(z, x, t, eps_s, *predict(denoise, x, t, condition, self.value("guidance_scale", step)))

    def direction(self, latents: NoisyLatents, condition: Condition, step: int) -> Tensor:
        alpha, sigma = self.schedule.alpha_sigma(latents.t, latents.z)
        return sigma / alpha * (latents.eps - latents.eps_ref)


class SDI(Distillation):
    """Score distillation via inversion (Lukoianov et al. 2024, arXiv 2405.15891, section 5).

    The loss moves the clean latents z of a render towards the clean latents that the prior predicts for z with added
    noise. The added noise kappa is not random: DDIM inversion (DDIM sampling backwards, from clean to noisy) finds it.
    For a sampled timestep t, which by default decreases during the run:

    1. DDIM inversion moves z from timestep 0 to noisy latents x_u at timestep u. Its steps have
       n = T / `inversion_steps` timesteps, with T training timesteps. Only the last step may be longer or shorter,
       since u is t plus a random number below n, at most T - 1. The option `inversion_guidance_scale`, negative by
       default, is the guidance scale of the predicted noise, `inversion_eta` the amount of fresh noise in each step.
    2. kappa is the noise in x_u: the solution of x_u = sqrt(alpha_bar_u) z + sqrt(1 - alpha_bar_u) kappa.
    3. The same noise gives the noisy latents at t: x_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) kappa.
    4. The gradient with respect to z is (z - x0) / B for B images; x0 are the clean latents predicted from x_t with
       `guidance_scale`.
    """

    def predictions(
        self, z: Tensor, t: Tensor, noise: Tensor, denoise: Denoiser, condition: Condition, step: int, rng: Generator
    ) -> NoisyLatents:
        options, T = self.options, self.schedule.T
        interval = max(1, T // options.inversion_steps)
        beyond = torch.randint(interval, (1,), generator=rng, device=rng.device)
        end = (t + to_device(beyond, t.device)).clamp(max=T - 1)
        timesteps = [*inversion_timesteps(torch.zeros_like(t), t, interval)[:-1], end]
        inverse = guided(denoise, condition, options.inversion_guidance_scale)
        x, _ = invert(inverse, self.schedule, z, timesteps, options.inversion_eta, rng)
        alpha, sigma = self.schedule.alpha_sigma(end, z)
        kappa = (x - alpha * z) / sigma
        return super().predictions(z, t, kappa, denoise, condition, step, rng)

    def direction(self, latents: NoisyLatents, condition: Condition, step: int) -> Tensor:
        return reconstruction_direction(latents, self.schedule, 0, condition.n_view)
