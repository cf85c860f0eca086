"""Stable Diffusion (arXiv 2112.10752) as a prior: one picture at a time, judged without a camera.

The networks and their loading are MVDream's (``mvdream.py``), which is this model plus cameras and joined attention;
here neither is used. So any weights of Stable Diffusion's architecture do, those of a multi-view prior too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from threedgen.guidance.options import StableDiffusionConfig

from .mvdream import MVDream, load_as


def build(options: StableDiffusionConfig, device: torch.device | str = "cpu") -> StableDiffusion:
    """The prior that a config describes. Raises ConfigError."""
    prior: StableDiffusion = load_as(StableDiffusion, options, device, camera=False)
    return prior


class StableDiffusion(MVDream):
    """MVDream's networks in 2D mode: whatever is asked, each picture is alone and no camera is given."""

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        camera: Tensor | None = None,
        n_view: int = 1,
        coarse: Tensor | None = None,
    ) -> Tensor:
        """As MVDream's, but ``camera`` and ``n_view`` are left out."""
        return super().predict(x, t, text, coarse=coarse)
