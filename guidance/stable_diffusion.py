"""Stable Diffusion (arXiv 2112.10752) as a prior: one picture at a time, judged without a camera.

The networks and their loading are MVDream's (``mvdream.py``), which is this model plus cameras and joined attention;
here neither is used. So any weights of Stable Diffusion's architecture do, and the embedded prior plays its role: in
its 2D mode it draws single pictures and has no idea of the side from which one looks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import set_attention
from .mvdream import MVDream, require_attention
from .options import StableDiffusionConfig


def build(options: StableDiffusionConfig, device: torch.device | str = "cpu") -> StableDiffusion:
    """The prior that a config describes. Raises ConfigError."""
    o = options
    require_attention(o.attention, device)
    prior = StableDiffusion.load(o.weights, device, o.dtype, o.tokenizer, o.image_size, camera=False)
    set_attention(prior.unet, o.attention)
    return prior


class StableDiffusion(MVDream):
    """MVDream's networks in 2D mode: whatever is asked, each picture is alone and no camera is told."""

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        camera: Tensor | None = None,
        n_view: int = 1,
        draft: Tensor | None = None,
    ) -> Tensor:
        """As MVDream's, but ``camera`` and ``n_view`` are left out."""
        return super().predict(x, t, text, None, 1, draft)
