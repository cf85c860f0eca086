"""Pictures of one scene with the cameras that took them, and what a novel-view sampler is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.geometry.cameras import Cameras, Index


@dataclass(frozen=True)
class Views:
    """Pictures (N, H, W, 3), float in [0, 1], and their cameras. Raises ValueError if the two do not fit."""

    images: Tensor
    at: Cameras

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
        return Views(resize(self.images, size, size), self.at.with_size(size, size))


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Pictures (N, h, w, 3) as (N, height, width, 3): averaged over areas where both sides shrink, else linear."""
    x = images.permute(0, 3, 1, 2)
    if height <= x.shape[-2] and width <= x.shape[-1]:
        x = F.interpolate(x, (height, width), mode="area")
    else:
        x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False, antialias=True)
    return x.permute(0, 2, 3, 1)


def borders(images: Tensor) -> Tensor:
    """The pixels at the four borders of pictures (N, H, W, 3): (N, 2 (H + W), 3)."""
    return torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)


NEAR, SHARE = 16, 0.8
"""A pixel is near the object if the object is within a NEARth of the picture's side; SHARE of those drawn are."""
DIFFERENT = 0.03
"""What differs by more from the colour behind it, in any channel, or is more opaque, is the object."""


class Pixels:
    """The P pixels of views as rays: ``origins``, unit ``directions``, ``colours`` and ``behind``, the colour behind
    the object, which is the median of the picture's borders; each (P, 3), on the CPU. ``empty`` (P,): those that see
    nothing, ``near`` (K,): the indices of the others. ``opacity`` (P, 1): of what they see, if that is known."""

    def __init__(self, views: Views, opacity: Tensor | None = None) -> None:
        """opacity: (N, H, W) in [0, 1]; without it, what differs from the colour behind is taken for the object."""
        images, side = views.images.cpu(), min(views.at.height, views.at.width)
        self.origins, self.directions = (part.reshape(-1, 3) for part in views.at.rays())
        self.colours = images.reshape(-1, 3)
        behind = borders(images).median(1).values[:, None, None].expand(images.shape)
        self.behind = behind.reshape(-1, 3)
        self.opacity = None if opacity is None else opacity.cpu().reshape(-1, 1)
        seen = (images - behind).abs().amax(-1) if opacity is None else opacity.cpu()
        there = (seen > DIFFERENT).float()[:, None]
        reach = max(1, round(side / NEAR / 2))
        near = F.max_pool2d(there, 2 * reach + 1, 1, reach).flatten()
        self.near, self.empty = near.nonzero()[:, 0], near == 0

    def before(self, picked: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Colours (K, 3) of the pixels ``picked`` (K,), and what is behind the object there.

        Where its opacity is known that is another colour each time, through which it does not show itself.
        """
        colours, behind = self.colours[picked], self.behind[picked]
        if self.opacity is None:
            return colours, behind
        other = torch.rand(behind.shape, generator=rng)
        return colours + (1 - self.opacity[picked]) * (other - behind), other

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """So many pixels (count,), most of them near the object, with repetition."""
        near = round(SHARE * count) if len(self.near) else 0
        chosen = torch.randint(max(1, len(self.near)), (near,), generator=rng)
        return torch.cat([self.near[chosen], torch.randint(len(self.colours), (count - near,), generator=rng)])


@dataclass(frozen=True)
class Request:
    """What a novel-view sampler is asked for: the ``target`` views of one scene.

    ``condition``: the views that are given, possibly none; ``text``: words for samplers that take words;
    ``numbers`` (N,): the number of each target view among the views of its scene, as files are named.
    """

    scene: str
    condition: Views | None
    target: Cameras
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
