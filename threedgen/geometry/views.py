"""Pictures of one scene with the cameras that took them, and what a novel-view sampler is asked for.

``c2w`` (N, 4, 4) is in the conventions of ``threedgen.geometry.cameras``: OpenGL axes, z up. ``K`` (N, 3, 3) are intrinsics in
pixels as everybody writes them: x to the right, y down, pixel centres at +0.5, so that the middle of a picture of
width W is at W / 2. Unlike ``cameras.Cameras``, which are drawn from options, these are measured: the principal point
may lie anywhere, and pixels need not be square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.geometry.cameras import Cameras
from threedgen.geometry.poses import opencv_axes, pixel_rays

Index = slice | Sequence[int] | Tensor

@dataclass(frozen=True)
class Viewpoints:
    """N cameras: poses (N, 4, 4), intrinsics (N, 3, 3), and the size of their pictures in pixels."""

    c2w: Tensor
    K: Tensor
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.c2w)

    @classmethod
    def of(cls, cameras: Cameras) -> Viewpoints:
        """The same cameras: square pixels, principal point in the middle."""
        K = torch.zeros(len(cameras), 3, 3)
        K[:, 0, 0] = K[:, 1, 1] = cameras.focal
        K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = cameras.width / 2, cameras.height / 2, 1
        return cls(cameras.c2w, K, cameras.height, cameras.width)

    @property
    def position(self) -> Tensor:
        """Centres of projection (N, 3)."""
        return self.c2w[:, :3, 3]

    @property
    def opencv(self) -> Tensor:
        """Poses (N, 4, 4) with OpenCV axes."""
        return opencv_axes(self.c2w)

    def select(self, index: Index) -> Viewpoints:
        """Some of them, in the order of ``index``."""
        return replace(self, c2w=self.c2w[index], K=self.K[index])

    def resized(self, height: int, width: int) -> Viewpoints:
        """The same views in another resolution: focal lengths and principal points grow with the sides."""
        scale = self.K.new_tensor([width / self.width, height / self.height, 1.0])
        return Viewpoints(self.c2w, self.K * scale[:, None], height, width)

    def rays(self) -> tuple[Tensor, Tensor]:
        """Origins and unit directions (N, H, W, 3) through the pixel centres."""
        origins, directions = pixel_rays(self.c2w, self.K, self.height, self.width)
        return origins.expand_as(directions), directions


@dataclass(frozen=True)
class Views:
    """Pictures (N, H, W, 3), float in [0, 1], and their cameras. Raises ValueError if the two do not fit."""

    images: Tensor
    at: Viewpoints

    def __post_init__(self) -> None:
        wanted = (len(self.at), self.at.height, self.at.width, 3)
        if tuple(self.images.shape) != wanted:
            raise ValueError(f"the cameras are of pictures {wanted}, not {tuple(self.images.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: Index) -> Views:
        """Some of them, in the order of ``index``."""
        return Views(self.images[index], self.at.select(index))

    def resized(self, size: int) -> Views:
        """Square views of ``size`` pixels: larger pictures averaged over areas, smaller ones enlarged linearly.

        The intrinsics go with them.
        """
        if (self.at.height, self.at.width) == (size, size):
            return self
        return Views(resize(self.images, size, size), self.at.resized(size, size))


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Pictures (N, h, w, 3) as (N, height, width, 3): averaged over areas where both sides shrink, else linear."""
    x = images.permute(0, 3, 1, 2)
    if height <= x.shape[-2] and width <= x.shape[-1]:
        x = F.interpolate(x, (height, width), mode="area")
    else:
        x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return x.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Request:
    """What a novel-view sampler is asked for: the ``target`` views of one scene.

    ``condition``: the views that are given, possibly none; ``text``: words for samplers that take words;
    ``numbers`` (N,): the number of each target view among the views of its scene, as files are named.
    """

    scene: str
    condition: Views | None
    target: Viewpoints
    numbers: tuple[int, ...]
    text: str = ""
    seed: int = 0


class NovelViewSampler(Protocol):
    """Condition images and poses, target poses -> images. Built by the registry's kind "sampler"."""

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        """Pictures (N, H, W, 3) in [0, 1] on the CPU of each request's targets, in their resolution or the sampler's
        own. Requests may be answered together; what one gets must not depend on its company. Raises ConfigError."""
        ...

    def fingerprint(self) -> str:
        """A text that changes when the sampler would answer otherwise: weights, settings, files."""
        ...
