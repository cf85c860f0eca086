"""Smallest possible prior: on pixels, and its only image of a prompt has the colour that the prompt names.

    python launch.py --plugin docs/plugins/solid_colour.py prior.name=solid-colour camera.n_view=1 \\
        warm_start.share=0 "refine.strengths=[]" prompt="a red ball"

The optimal denoiser for one image x0 is known in closed form: eps = (x - alpha x0) / sigma.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from threedgen.config.registry import register
from threedgen.guidance.options import PriorConfig
from threedgen.guidance.prior import Prior
from threedgen.guidance.schedule import Schedule

COLOURS = {"red": (0.8, 0.1, 0.1), "green": (0.1, 0.7, 0.1), "blue": (0.1, 0.2, 0.8)}


class SolidColourConfig(PriorConfig):
    """Prior whose images have one colour."""

    name: Literal["solid-colour"] = "solid-colour"
    weights: str = "none"

    def check(self) -> None:
        """Need no files."""

    def vocabulary(self) -> None:
        """Accept any words."""

    def describe(self) -> list[str]:
        """Return the weights for --dry-run: none."""
        return []

    def identify(self) -> dict:
        """Return the identities of the weights: none."""
        return {}


class SolidColour(Prior):
    """The text embedding (1, 3) is the colour, in [-1, 1]."""

    def __init__(self, options: SolidColourConfig, device: str = "cpu") -> None:
        self.unet, self.schedule = torch.nn.Identity(), Schedule.scaled_linear()
        self.image_size, self.factor = options.image_size or 16, 1
        self.device, self.dtype = torch.device(device), torch.float32

    networks = {}
    max_tokens, text_shape = 77, (1, 3)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Return (C, h, w) of the latents: the image itself."""
        return 3, self.image_size, self.image_size

    def to(self, device: torch.device | str) -> SolidColour:
        """Move to a device."""
        self.device = torch.device(device)
        return self

    def tokens_cut(self, prompt: str) -> str:
        """Return the end of the prompt beyond the token limit: none."""
        return ""

    def unknown_words(self, prompt: str) -> list:
        """Return words outside of the vocabulary: none."""
        return []

    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Return the colours (n, 1, 3); grey for a prompt without one."""
        words = [next((w for w in prompt.split() if w in COLOURS), "") for prompt in prompts]
        return torch.tensor([[COLOURS.get(word, (0.5, 0.5, 0.5))] for word in words], device=self.device) * 2 - 1

    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return images (B, H, W, 3) in [0, 1] as (B, 3, s, s) in [-1, 1]."""
        return self.to_network_images(rgb)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Return latents as images (B, s, s, 3) in [0, 1]."""
        return (z.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)

    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        """Return the noise in x (B, 3, s, s), if the image without noise has the colour `text` (B, 1, 3)."""
        alpha, sigma = self.schedule.alpha_sigma(t, x)
        return (x - alpha * text[:, 0, :, None, None]) / sigma


register("prior", "solid-colour", f"{__name__}:SolidColour", f"{__name__}:SolidColourConfig")
