"""Stable Diffusion (arXiv 2112.10752) as a prior: one picture at a time, judged without a camera.

The networks and their loading are MVDream's (``mvdream.py``), which is this model plus cameras and joined attention;
here neither is used. So any weights of Stable Diffusion's architecture do, and the embedded prior plays its role:
it is asked for single pictures, and nobody tells it the side from which one looks (``camera_posterior.py``).
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from threedgen.guidance.options import StableDiffusionConfig

from .camera_posterior import UnseenCamera, candidates
from .mvdream import MVDream, load_as


def build(options: StableDiffusionConfig, device: torch.device | str = "cpu") -> StableDiffusion:
    """The prior that a config describes. Raises ConfigError."""
    prior: StableDiffusion = load_as(StableDiffusion, options, device, camera=False)
    prior.front = options.front
    return prior


class StableDiffusion(MVDream):
    """MVDream's networks in 2D mode: whatever is asked, each picture is alone and no camera is given.

    front: how much a prior with a draft prefers the front, from which photographers take most pictures.
    """

    front = 3.0
    unseen: UnseenCamera | None = None

    def to(self, device: torch.device | str) -> Self:
        self.unseen = None
        return super().to(device)

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
        if self.draft is None:
            return super().predict(x, t, text)
        if self.unseen is None:
            self.unseen = UnseenCamera(self.draft, self.camera(candidates().to(x.device)), self.front)
        seen = self.unseen(x, t, text, self.schedule)
        return super().predict(x, t, text, seen.camera, 1, seen.draft)

    @torch.no_grad()
    def encode_views(self, views: Tensor) -> Tensor:
        """Means of the latents (F,C,h,w) of pictures (F,H,W,3) at their own size, one after the other."""
        pictures = (2 * views.permute(0, 3, 1, 2) - 1).to(self.device, torch.float32)
        with self.encoding():
            means = [self.vae.encode(picture).latent_dist.mean.float() for picture in pictures.split(1)]
        return self.scaling_factor * torch.cat(means)
