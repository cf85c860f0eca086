"""Stable Diffusion (arXiv 2112.10752) as a prior: one picture at a time, judged without a camera.

The networks and their loading are MVDream's (``mvdream.py``), which is this model plus cameras and joined attention;
here neither is used. So any weights of Stable Diffusion's architecture do, those of a multi-view prior too.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from threedgen.guidance.draft import check_halves
from threedgen.guidance.options import StableDiffusionConfig

from .mvdream import MVDream, load_as


def build(options: StableDiffusionConfig, device: torch.device | str = "cpu") -> StableDiffusion:
    """The prior that a config describes. Raises ConfigError."""
    prior: StableDiffusion = load_as(StableDiffusion, options, device, camera=False)
    return prior.with_draft(options.draft)


class StableDiffusion(MVDream):
    """MVDream's networks in 2D mode: whatever is asked, each picture is alone and no camera is given."""

    def with_draft(self, draft: float | None) -> Self:
        """Draws in two sizes from now on, or in one; see ``draft``. Raises ConfigError if ``image_size`` cannot be
        halved."""
        check_halves((self.image_size, self.image_size), draft, self.unit)
        self.draft = draft
        return self

    @property
    def unit(self) -> int:
        """Pixels of which the sides of pictures should be multiples."""
        levels = len(self.unet.config["block_out_channels"])
        return int(self.factor * 2 ** (levels - 1))

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

    @torch.no_grad()
    def encode_views(self, views: Tensor) -> Tensor:
        """Means of the latents (F,C,h,w) of pictures (F,H,W,3) at their own size, one after the other."""
        pictures = (2 * views.permute(0, 3, 1, 2) - 1).to(self.device, torch.float32)
        with self.encoding():
            means = [self.vae.encode(picture).latent_dist.mean.float() for picture in pictures.split(1)]
        return self.scaling_factor * torch.cat(means)
