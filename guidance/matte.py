"""Tells the thing in a picture from the plain grey behind it: the opacity that pictures of a prior do not have.

An object fitted to pictures alone cannot tell its own grey, or a pale colour in the shade, from nothing: bellies become
hollow, and gaps are filled with matter in the colour behind them. With the opacity of each pixel, whatever is behind
the thing can be exchanged, and the object is told from it by that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgen.geometry.views import resize
from threedgen.guidance.weights import files, loading
from threedgen.guidance.weights.loading import CONFIG, TENSORS
from threedgen.run.disk import write_json

CHUNK, LARGEST = 16, 1024
"""Pictures looked at together, and pixels of their side at most."""


class Matte(nn.Module):
    """A U-Net (Ronneberger et al. 2015) from pictures to logits of opacity, at pictures of ``size`` pixels a side."""

    def __init__(self, size: int = 128, channels: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        """Builds levels of ``channels``, each half the size of the one before, the first half of the picture's.

        Raises ValueError unless ``size`` can be halved so often, and is at most ``LARGEST``.
        """
        super().__init__()
        self.sizes: dict[str, Any] = {"size": size, "channels": channels}
        if not 0 < size <= LARGEST or size % 2 ** len(channels):
            raise ValueError(f"size {size} should be a multiple of 2 ** levels, {LARGEST} at most")
        finer, coarser = channels[:-1], channels[1:]
        self.stem = convolution(3 * 2 * 2, channels[0])
        self.down = nn.ModuleList(
            nn.Sequential(convolution(a, b, 2), convolution(b, b)) for a, b in zip(finer, coarser, strict=True)
        )
        self.up = nn.ModuleList(convolution(a + b, a) for a, b in zip(finer, coarser, strict=True))
        self.out = nn.Conv2d(channels[0], 2 * 2, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,S,S) of pictures (B,3,S,S) in [0,1]."""
        x = F.pixel_unshuffle((x - 0.5) * 4, 2)
        y = self.stem(x.contiguous(memory_format=torch.channels_last))
        levels = []
        for down in self.down:
            levels.append(y)
            y = down(y)
        for up, fine in zip(reversed(self.up), reversed(levels), strict=True):
            y = up(torch.cat([fine, F.interpolate(y, size=fine.shape[-2:])], 1))
        return F.pixel_shuffle(self.out(y).float(), 2)[:, 0]

    def save(self, path: Path) -> None:
        """Writes a folder with float16 tensors, whole or not at all. Raises ConfigError if something else is there."""
        with files.whole_folder(path, CONFIG) as part:
            write_json(part / CONFIG, {"_class_name": type(self).__name__, **self.sizes})
            files.save_tensors(self, part / TENSORS)

    @classmethod
    def load(cls, weights: str) -> Matte:
        """The frozen network that ``weights`` names, on the CPU. Raises ConfigError."""
        path = loading.matte(weights)
        files.check_sums(path)
        config = files.read_json(path / CONFIG)
        known = {key: config[key] for key in ("size", "channels") if key in config}
        return files.fill(lambda: cls(**known), files.read_tensors(path / TENSORS), "matte").eval()

    @torch.no_grad()
    def opacity(self, pictures: Tensor) -> Tensor:
        """Opacity (B,H,W) in [0,1] of pictures (B,H,W,3) in [0,1], of any size."""
        size = self.sizes["size"]
        x = resize(pictures.float(), size, size).permute(0, 3, 1, 2)
        found = torch.cat([self(part).sigmoid() for part in x.split(CHUNK)])
        return resize(found[..., None], *pictures.shape[1:3])[..., 0]


def convolution(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)
    )
