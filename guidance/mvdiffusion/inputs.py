"""What the UNet is told of each pixel beside the noisy latents: depth, or a mask and the picture around it; and the
condition of views that are given already.

Pictures (F,H,W,3) in [0,1], latents (F,C,h,w), depth (F,H,W) with 0, or no finite length, where it
is unknown.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Convention = Literal["code", "paper"]
"""Of the mask of what is given: code has ones where something is to be painted, around it mid-grey (as SD's inpainting
models and the released weights); paper (section 4.1) has ones where the picture is given, and black elsewhere."""
Extra = Literal["nothing", "depth", "mask"]
UNKNOWN = -2.0
"""In the place of the inverse depth."""
NOT_GIVEN: dict[Convention, float] = {"code": 0.5, "paper": 0.0}
"""In the place of a picture."""


def extra_kind(extra: int, latent: int) -> Extra:
    """What a UNet is told by ``extra`` channels beside ``latent`` ones. Raises ValueError for any other number."""
    kinds: dict[int, Extra] = {0: "nothing", 1: "depth", latent + 1: "mask"}
    if extra not in kinds:
        raise ValueError(
            f"a UNet that takes {extra} channels beside {latent} latents is told neither depth (1) nor a mask and what "
            f"is around it ({latent + 1})"
        )
    return kinds[extra]


def unknown_channels(kind: Extra, like: Tensor) -> Tensor:
    """What a UNet of this kind is told (F,E,h,w) if nothing is known about latents ``like`` (F,C,h,w)."""
    if kind == "depth":
        return torch.full_like(like[:, :1], UNKNOWN)
    mask = torch.ones_like(like[:, :1])
    return torch.cat([mask, torch.zeros_like(like)], 1) if kind == "mask" else like[:, :0]


def depth_channels(depth: Tensor, height: int, width: int) -> Tensor:
    """Inverse depth (F,1,height,width), each picture's brought to [-1, 1], nearest pixels; -2 where it is unknown."""
    known = (depth > 0) & depth.isfinite()
    inverse = torch.where(known, 1 / (depth.double() + 1e-6), 0.0)
    low = torch.where(known, inverse, torch.inf).flatten(1).amin(1)[:, None, None]
    high = inverse.flatten(1).amax(1)[:, None, None]
    scaled = 2 * (inverse - low) / (high - low).clamp_min(1e-12) - 1
    return F.interpolate(torch.where(known, scaled, UNKNOWN)[:, None].float(), (height, width), mode="nearest")


def masked_pictures(views: Tensor, given: Tensor, convention: Convention = "code") -> Tensor:
    """Views of which what is ``given``, whole views (F,) or pixels (F,H,W), bool, is kept, the rest grey or black."""
    return torch.where(_pixels(given)[..., None], views, NOT_GIVEN[convention])


def mask_channels(latents: Tensor, given: Tensor, convention: Convention = "code") -> Tensor:
    """Mask and ``latents`` (F,C,h,w) of ``masked_pictures``: (F,1+C,h,w). A latent is given if all its pixels are."""
    to_paint = F.adaptive_max_pool2d((~_pixels(given)).to(latents)[:, None], latents.shape[-2:])
    return torch.cat([to_paint if convention == "code" else 1 - to_paint, latents], 1)


def given_latents(extra: Tensor, convention: Convention = "code") -> tuple[Tensor, Tensor]:
    """Of ``mask_channels`` (F,1+C,h,w): ones where a latent is given (F,1,h,w), and the latents (F,C,h,w)."""
    mask, latents = extra[:, :1], extra[:, 1:]
    return 1 - mask if convention == "code" else mask, latents


def _pixels(given: Tensor) -> Tensor:
    """(F,) as (F,1,1): a view of one pixel."""
    return given[:, None, None] if given.dim() == 1 else given


def given_condition(latents: Tensor, given: Tensor) -> Tensor:
    """The condition (F,C+1,h,w) of the branch for given views: clean latents and ones, or zeros."""
    marked = F.pad(latents, (0, 0, 0, 0, 0, 1), value=1.0)
    return marked * given.to(latents)[:, None, None, None]
