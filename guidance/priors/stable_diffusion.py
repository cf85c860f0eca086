"""Stable Diffusion (arXiv 2112.10752) as a prior of single images without cameras.

It loads all weights of this architecture. The weights of a multi-view prior work too: the model then runs in 2D mode.
"""

from __future__ import annotations

import torch

from threedgen.guidance.options import StableDiffusionConfig

from .latent_diffusion import LatentDiffusion, load_prior


def build(options: StableDiffusionConfig, device: torch.device | str = "cpu") -> StableDiffusion:
    """Build the prior from its config section. Raises ConfigError if its files are missing or damaged."""
    return load_prior(StableDiffusion, options, device)


class StableDiffusion(LatentDiffusion):
    """Latent diffusion prior of single images; `LatentDiffusion` without changes."""
