"""MVDream (arXiv 2308.16512): a text-to-image diffusion model that samples several views of one object at once.

One class serves the released weights and the embedded toybox prior: stock UNet, VAE and text encoder, made multi-view
by `attention/joined.py`. With n_view = 1 and no camera it is the 2D model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from threedgen.guidance.attention.joined import camera_vector
from threedgen.guidance.options import MVDreamConfig
from threedgen.guidance.prior import MultiviewPrior

from .latent_diffusion import LatentDiffusion, load_prior


def build(options: MVDreamConfig, device: torch.device | str = "cpu") -> MVDream:
    """Build the prior of a config. Raises ConfigError."""
    return load_prior(MVDream, options, device, options.personalisation, options.personalisation_strength)


class MVDream(LatentDiffusion, MultiviewPrior):
    """A multi-view latent diffusion prior with a camera branch."""

    needs_camera = True

    def camera(self, c2w: Tensor) -> Tensor:
        return camera_vector(c2w)

    def coarse_latents(self, text: Tensor, c2w: Tensor | None) -> Tensor | None:
        # without a camera there is only a mean over all, for a tuned subject only its class
        return None if c2w is None or self.identifiers else self.predict_coarse(self.coarse, text, c2w)
