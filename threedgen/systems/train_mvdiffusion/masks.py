"""Pictures of which a part is to be painted, for a model that is told a mask and what is around it (inpainting)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threedgen.data.bank import Captioned, LatentBank
from threedgen.data.scene_views import SceneSource
from threedgen.geometry.views import resize
from threedgen.guidance.mvdiffusion.inputs import Convention, mask_channels, masked_images
from threedgen.run.arrays import Array

Paint = Callable[[np.random.Generator, int], Array]
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


def around_a_photo(rng: np.random.Generator, size: int) -> Array:
    """What a photo in the middle of a view of 90 degrees leaves to be painted (size,size), bool: of some 50 to 90
    degrees, upright or not, or nothing."""
    if rng.random() < WHOLE:
        return np.zeros((size, size), bool)
    longer = np.tan(np.deg2rad(rng.uniform(50, 90)) / 2)
    sides = longer * np.array([1, rng.choice([1, 3 / 4, 9 / 16])])
    height, width = sides if rng.random() < 0.3 else sides[::-1]
    place = np.abs(np.arange(size) + 0.5 - size / 2) / (size / 2)
    return ~((place < height)[:, None] & (place < width))


class MaskedViews:
    """Views of scenes one by one, or ``first`` ones alone, each beside itself with a part left out: a source of
    ``threedgen.data.bank``. paint: draws what is left out of a picture of so many pixels."""

    n_view = 2

    def __init__(
        self, source: SceneSource, seed: int, convention: Convention, paint: Paint = painted, first: bool = False
    ) -> None:
        self.source, self.seed, self.convention = source, seed, convention
        self.paint, self.each = paint, 1 if first else source.n_view

    def __len__(self) -> int:
        return len(self.source) * self.each

    def describe(self) -> str:
        kind = f"{self.each} views of a scene, {self.paint.__name__}, {self.convention}"
        return f"masked views, seed {self.seed}, {kind}, of {self.source.describe()}"

    def mask(self, index: int, size: int) -> Array:
        """What is left out of a picture (size,size), bool."""
        return self.paint(np.random.default_rng([self.seed, 7, index]), size)

    def block(self, indices: range, size: int) -> Captioned:
        rgb, captions = np.empty((len(indices), 2, size, size, 3), np.float32), []
        scene, number = None, -1
        for place, index in enumerate(indices):
            if scene is None or number != index // self.each:
                number = index // self.each
                scene = self.source.scene(number % len(self.source))
            view = index % self.each
            picture = resize(scene.views.images[view, None], size, size)
            given = torch.from_numpy(~self.mask(index, size))
            rgb[place] = torch.cat([picture, masked_images(picture, given[None], self.convention)])
            captions.append(scene.captions[view])
        poses = np.broadcast_to(np.eye(4, dtype=np.float32), (2 * len(indices), 4, 4))
        return Captioned(rgb.reshape(-1, size, size, 3), captions, poses)


class MaskBank:
    """Latents, what is told of them, and captions of ``views``, cached in a folder."""

    def __init__(self, folder: Path, views: MaskedViews, vae: Any, size: int) -> None:
        self.views = views
        self.bank = LatentBank(folder, views, vae, size, len(views))

    def draw(self, rng: np.random.Generator, known: int, count: int) -> tuple[Tensor, Tensor, list[str]]:
        """``count`` of the first ``known`` pictures at random.

        Latents (n,C,h,w), mask and known latents (n,1+C,h,w), captions.
        """
        chosen = rng.integers(0, min(known, self.bank.count), count)
        return self.bank.latents(chosen)[:, 0], self.extra(chosen), self.bank.captions(chosen)

    def extra(self, chosen: Sequence[int] | Array) -> Tensor:
        """Mask and known latents (n,1+C,h,w). A latent is known if all of its pixels are."""
        known = self.bank.latents(chosen)[:, 1]
        left_out = torch.from_numpy(np.stack([self.views.mask(int(i), self.bank.size) for i in chosen]))
        return mask_channels(known, ~left_out, self.views.convention)
