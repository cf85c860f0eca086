"""SDS with antithetic noise: every noise is used together with its negative.

    python launch.py --plugin docs/plugins/antithetic.py distillation.name=antithetic prompt="a red penguin"

The gradient of SDS contains the random noise that was added. In the mean over a noise and its negative, the parts that
are linear in the noise cancel, so the gradient varies less between steps.
"""

from typing import Literal

import torch
from pydantic import Field

from threedgen.config.registry import register
from threedgen.guidance.guidance import predict
from threedgen.guidance.losses.options import DistillationConfig
from threedgen.guidance.losses.sds import Distillation, gradient_loss
from threedgen.guidance.sampling import fresh_noise


class AntitheticConfig(DistillationConfig):
    """SDS with noise in pairs of opposite signs."""

    name: Literal["antithetic"] = "antithetic"
    pairs: int = Field(1, ge=1, description="pairs of noises whose gradients are averaged")


class Antithetic(Distillation):
    """Gradient w(t) (eps - noise), averaged over `pairs` noises and their negatives."""

    def forward(self, latents, denoise, condition, step, generator, views=None):
        """Return the loss of latents (B, C, h, w) and values to log."""
        t, noise, logs = self.sample_noise(latents, condition.n_view, step, generator)
        z, scale = latents.detach().float(), self.value("guidance_scale", step)
        total = torch.zeros_like(z)
        with torch.no_grad():
            for _ in range(self.options.pairs):
                for signed in (noise, -noise):
                    x = self.schedule.add_noise(z, signed, t)
                    total += predict(denoise, x, t, condition, scale)[0] - signed
                noise = fresh_noise(z, generator)
            _, sigma = self.schedule.alpha_sigma(t, z)
        loss, more = gradient_loss(latents, sigma**2 * total / (2 * self.options.pairs), t)
        return loss, more | logs


register("distillation", "antithetic", f"{__name__}:Antithetic", f"{__name__}:AntitheticConfig")
