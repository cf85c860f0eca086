"""Stable Diffusion (arXiv 2112.10752) as a prior: single images, no camera.

Any weights of its architecture do, those of a multi-view prior too, which is then used in its 2D mode.
"""

from __future__ import annotations

import torch

from threedgen.guidance.options import StableDiffusionConfig

from .latent_diffusion import LatentDiffusion, load_prior


def build(options: StableDiffusionConfig, device: torch.device | str = "cpu") -> StableDiffusion:
    """Build the prior of a config. Raises ConfigError."""
    return load_prior(StableDiffusion, options, device)


class StableDiffusion(LatentDiffusion):
    """A latent diffusion prior of single images."""
