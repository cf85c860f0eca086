"""Interval score matching (Liang et al. 2023, "LucidDreamer", arXiv 2311.11284).

    python launch.py --plugin docs/plugins/ism.py distillation.name=ism prompt="a red penguin"

SDS adds fresh noise at every step, so its targets for one object differ. ISM inverts the clean latents by DDIM instead,
without text, and compares the predictions at the two ends of the last interval.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from threedgen.config.registry import register
from threedgen.guidance.guidance import predict
from threedgen.guidance.losses.options import DistillationConfig
from threedgen.guidance.losses.sds import Distillation, gradient_loss


class ISMConfig(DistillationConfig):
    """Interval score matching (arXiv 2311.11284)."""

    name: Literal["ism"] = "ism"
    interval: int = Field(50, ge=1, description="timesteps between the two predictions")
    inversion_steps: int = Field(4, ge=1, description="DDIM inversion steps from the image to the interval")


class ISM(Distillation):
    """Gradient w(t) (eps(x_t, t, text) - eps(x_s, s)) with s = t - interval."""

    def forward(self, latents, denoise, condition, step, generator, views=None):
        """Return the loss of latents (B, C, h, w) and values to log."""
        t, _, logs = self.sample_noise(latents, condition.n_view, step, generator)
        with torch.no_grad():
            s = (t - self.options.interval).clamp(min=0)
            x, now = latents.float(), torch.zeros_like(t)
            for k in range(1, self.options.inversion_steps + 1):
                x, now = self.invert(x, now, s * k // self.options.inversion_steps, denoise, condition)
            eps_s = predict(denoise, x, s, condition, guidance_scale=0)[0]
            x = self.schedule.add_noise(self.schedule.x0_from_eps(x, eps_s, s), eps_s, t)
            eps_t = predict(denoise, x, t, condition, self.value("guidance_scale", step))[0]
            _, sigma = self.schedule.alpha_sigma(t, x)
        loss, more = gradient_loss(latents, sigma**2 * (eps_t - eps_s), t)
        return loss, more | logs

    def invert(self, x: Tensor, now: Tensor, then: Tensor, denoise, condition) -> tuple[Tensor, Tensor]:
        """Move noisy latents from timestep `now` up to `then`, without text."""
        eps = predict(denoise, x, now, condition, guidance_scale=0)[0]
        return self.schedule.add_noise(self.schedule.x0_from_eps(x, eps, now), eps, then), then


register("distillation", "ism", f"{__name__}:ISM", f"{__name__}:ISMConfig")
