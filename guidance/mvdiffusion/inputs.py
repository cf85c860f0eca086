"""What the UNet is told of each pixel beside the noisy latents: depth, or a mask and the picture around it; and the
condition of views that are given already.

Pictures (F,H,W,3) in [0,1], latents (F,C,h,w), depth (F,H,W) with 0 where it is unknown.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Convention = Literal["code", "paper"]
"""Of the mask of given views: code has ones where something is to be painted, around it mid-grey (as SD's inpainting
models and the released weights); paper (section 4.1) has ones where the picture is given, and black elsewhere."""
Told = Literal["nothing", "depth", "mask"]
UNKNOWN = -2.0
"""In the place of the inverse depth."""


def told_kind(told: int, latent: int) -> Told:
    """What a UNet is told by ``told`` channels beside ``latent`` ones. Raises ValueError for any other number."""
    kinds: dict[int, Told] = {0: "nothing", 1: "depth", latent + 1: "mask"}
    if told not in kinds:
        raise ValueError(
            f"a UNet that takes {told} channels beside {latent} latents is told neither depth (1) nor a mask and what "
            f"is around it ({latent + 1})"
        )
    return kinds[told]


def told_nothing(kind: Told, like: Tensor) -> Tensor:
    """What a UNet of this kind is told (F,E,h,w) if nothing is known about latents ``like`` (F,C,h,w)."""
    if kind == "depth":
        return torch.full_like(like[:, :1], UNKNOWN)
    mask = torch.ones_like(like[:, :1])
    return torch.cat([mask, torch.zeros_like(like)], 1) if kind == "mask" else like[:, :0]


def told_depth(depth: Tensor, height: int, width: int) -> Tensor:
    """Inverse depth (F,1,height,width), each picture's brought to [-1, 1], nearest pixels; -2 where it is unknown."""
    known = depth > 0
    inverse = torch.where(known, 1 / (depth.double() + 1e-6), 0.0)
    low = torch.where(known, inverse, torch.inf).flatten(1).amin(1)[:, None, None]
    high = inverse.flatten(1).amax(1)[:, None, None]
    scaled = 2 * (inverse - low) / (high - low).clamp_min(1e-12) - 1
    return F.interpolate(torch.where(known, scaled, UNKNOWN)[:, None].float(), (height, width), mode="nearest")


def masked_pictures(views: Tensor, given: Tensor, convention: Convention = "code") -> Tensor:
    """Views of which those that are ``given`` (F,), bool, are kept, the others grey or black."""
    return torch.where(given[:, None, None, None], views, 0.5 if convention == "code" else 0.0)


def told_mask(latents: Tensor, given: Tensor, convention: Convention = "code") -> Tensor:
    """Mask and ``latents`` (F,C,h,w) of ``masked_pictures``: (F,1+C,h,w)."""
    ones = ~given if convention == "code" else given
    mask = ones.to(latents)[:, None, None, None].expand(-1, 1, *latents.shape[-2:])
    return torch.cat([mask, latents], 1)


def given_condition(latents: Tensor, given: Tensor) -> Tensor:
    """The condition (F,C+1,h,w) of the branch for given views: clean latents and ones, or zeros."""
    marked = F.pad(latents, (0, 0, 0, 0, 0, 1), value=1.0)
    return marked * given.to(latents)[:, None, None, None]
