"""A first guess of the picture from words and camera alone, which the UNet of a small prior gets to see.

Where a latent is all noise, the best guess is the mean picture of what the caption names, seen from that camera. A
small decoder, trained on nothing else, learns it in minutes (docs/training.md has the figures); the UNet then finds it
in further input channels, as InstructPix2Pix (arXiv 2211.09800) finds the picture to edit there, and has but to sharpen
it. Priors without this part (all released weights) work as ever.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

HARMONICS = 4
"""Multiples of the azimuth that the draft is told; the camera vector as it is had no effect in 300 steps."""


class Draft(ModelMixin, ConfigMixin):
    """Text (B,L,D) and camera vectors (B,16) or None -> the mean latents (B,C,h,h), h = ``size``."""

    config_name: Any = "config.json"
    __getattr__ = nn.Module.__getattr__  # ``queries`` is the parameter, not the entry of the config

    @register_to_config
    def __init__(
        self,
        text_width: int = 128,
        latent_channels: int = 4,
        size: int = 16,
        queries: int = 6,
        heads: int = 4,
        width: int = 512,
        channels: tuple[int, ...] = (128, 96, 64),
    ) -> None:
        """``channels``: of each level of the decoder; each after the first doubles the size.

        Raises ValueError if ``size`` is not a multiple of 2 ** (levels - 1).
        """
        super().__init__()
        self.base = size // 2 ** (len(channels) - 1)
        if self.base * 2 ** (len(channels) - 1) != size:
            raise ValueError(f"size {size} should be a multiple of 2 ** (levels - 1)")
        self.heads = heads
        self.queries = nn.Parameter(torch.randn(queries, text_width))
        self.key_value = nn.Linear(text_width, 2 * text_width)
        self.norm = nn.LayerNorm(queries * text_width)
        self.camera = nn.Linear(2 * HARMONICS + 2, width // 2)
        self.no_camera = nn.Parameter(torch.zeros(width // 2))
        self.mix = nn.Sequential(
            nn.Linear(queries * text_width + width // 2, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, channels[0] * self.base**2),
        )  # fmt: skip
        layers: list[nn.Module] = []
        for before, after in zip(channels, channels[1:], strict=False):
            layers += [nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1)]
        self.draw = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(channels[-1], latent_channels, 3, padding=1))
        first: Any = self.mix[0]
        nn.init.kaiming_normal_(first.weight)

    def forward(self, text: Tensor, camera: Tensor | None) -> Tensor:
        seen = self.camera(directions(camera)) if camera is not None else self.no_camera.expand(len(text), -1)
        read = self.norm(self.read(text))
        mixed = self.mix(torch.cat([read, seen.to(read.dtype)], dim=1))
        return self.draw(mixed.unflatten(1, (-1, self.base, self.base)))

    def read(self, text: Tensor) -> Tensor:
        """Attention of the queries to the words: (B,L,D) -> (B, queries D)."""
        split = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.key_value(text).chunk(2, -1))
        key, value = split
        query = self.queries.to(key.dtype).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        out = F.scaled_dot_product_attention(query.expand(len(text), -1, -1, -1), key, value)
        return out.transpose(1, 2).flatten(1)


def directions(camera: Tensor) -> Tensor:
    """Camera vectors (B,16) -> (B, 2 HARMONICS + 2): harmonics of the azimuth, height of the unit position, squared."""
    x, y, z = camera[:, 3], camera[:, 7], camera[:, 11]
    turns = torch.atan2(y, x)[:, None] * torch.arange(1, HARMONICS + 1, device=camera.device)
    return torch.cat([turns.cos(), turns.sin(), z[:, None], z[:, None] ** 2], dim=1)
