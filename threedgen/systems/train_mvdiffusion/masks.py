"""Pictures of which a part is to be painted, for a model that is told a mask and what is around it (inpainting)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threedgen.data.bank import Captioned, LatentBank
from threedgen.data.scene_views import SceneSource
from threedgen.guidance.mvdiffusion.inputs import Convention
from threedgen.run.arrays import Array

UNKNOWN = {"code": 0.5, "paper": 0.0}
"""What stands where a picture is not known."""
WHOLE = 0.25
"""Share of the pictures of which nothing is known."""


def painted(rng: np.random.Generator, size: int) -> Array:
    """What is to be painted (size,size), bool: all, or all but a rectangle, or a rectangle; sides on multiples of 8."""
    if rng.random() < WHOLE:
        return np.ones((size, size), bool)
    first, second = np.sort(rng.integers(0, size // 8 + 1, (2, 2)), axis=0) * 8
    if rng.random() < 0.5:  # a strip along a side, as a panorama's neighbour knows it
        first[0], second[0] = 0, size
    box = np.zeros((size, size), bool)
    box[first[0] : second[0], first[1] : second[1]] = True
    return box if rng.random() < 0.5 else ~box


class MaskedViews:
    """Views of scenes one by one, each beside itself with a part left out: a source of ``threedgen.data.bank``."""

    n_view = 2

    def __init__(self, source: SceneSource, seed: int, convention: Convention) -> None:
        self.source, self.seed, self.unknown = source, seed, UNKNOWN[convention]

    def describe(self) -> str:
        return f"masked views, seed {self.seed}, {self.unknown}, of {self.source.describe()}"

    def mask(self, index: int, size: int) -> Array:
        return painted(np.random.default_rng([self.seed, 7, index]), size)

    def block(self, indices: range, size: int) -> Captioned:
        rgb, captions = np.empty((len(indices), 2, size, size, 3), np.float32), []
        scenes: dict[int, Any] = {}
        for place, index in enumerate(indices):
            number, view = divmod(index, self.source.n_view)
            if number not in scenes:
                scenes = {number: self.source.scene(number % len(self.source))}
            picture = scenes[number].views.images[view].numpy()
            rgb[place] = picture, np.where(self.mask(index, size)[..., None], self.unknown, picture)
            captions.append(scenes[number].captions[view])
        poses = np.broadcast_to(np.eye(4, dtype=np.float32), (2 * len(indices), 4, 4))
        return Captioned(rgb.reshape(-1, size, size, 3), captions, poses)


class MaskBank:
    """Latents, what is told of them, and captions of ``MaskedViews``, cached in a folder."""

    def __init__(
        self, folder: Path, source: SceneSource, vae: Any, size: int, count: int, seed: int, convention: Convention
    ) -> None:
        self.views, self.convention, self.size = MaskedViews(source, seed, convention), convention, size
        self.bank = LatentBank(folder, self.views, vae, size, count)

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor, list[str]]:
        """``count`` pictures at random: latents (n,C,h,w), mask and known latents (n,1+C,h,w), captions."""
        chosen = rng.integers(0, self.bank.count, count)
        z, known = self.bank.latents(chosen).unbind(1)
        paint = torch.from_numpy(np.stack([self.views.mask(int(i), self.size) for i in chosen]))
        ones = paint if self.convention == "code" else ~paint
        mask = torch.nn.functional.interpolate(ones[:, None].float(), z.shape[-2:], mode="nearest")
        return z, torch.cat([mask, known], 1), self.bank.captions(chosen)
