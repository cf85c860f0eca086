"""Further inputs of the UNet: depth, or a mask and the masked image; and the condition of given views.

Images are (F, H, W, 3) in [0, 1], latents (F, C, h, w), depth (F, H, W), 0 or not finite where unknown.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Convention = Literal["code", "paper"]
"""Mask convention. "code": ones where to inpaint, which is mid-grey (SD's inpainting models, the released weights);
"paper" (section 4.1): ones where the image is given, the rest black."""
Extra = Literal["nothing", "depth", "mask"]
UNKNOWN = -2.0
"""Value in place of an unknown inverse depth."""
MASKED_GREY: dict[Convention, float] = {"code": 0.5, "paper": 0.0}
"""Grey level of masked pixels."""


def extra_kind(extra: int, latent: int) -> Extra:
    """Return the kind of `extra` input channels beside `latent` ones. Raises ValueError for other numbers."""
    kinds: dict[int, Extra] = {0: "nothing", 1: "depth", latent + 1: "mask"}
    if extra not in kinds:
        raise ValueError(
            f"a UNet with {extra} input channels beside {latent} latents takes neither depth (1) nor a mask and the "
            f"masked image ({latent + 1})"
        )
    return kinds[extra]


def unknown_channels(kind: Extra, like: Tensor) -> Tensor:
    """Return the extra channels (F, E, h, w) of latents `like` (F, C, h, w) without any known input."""
    if kind == "depth":
        return torch.full_like(like[:, :1], UNKNOWN)
    mask = torch.ones_like(like[:, :1])
    return torch.cat([mask, torch.zeros_like(like)], 1) if kind == "mask" else like[:, :0]


def depth_channels(depth: Tensor, height: int, width: int) -> Tensor:
    """Return inverse depth (F, 1, height, width), each image scaled to [-1, 1], nearest pixels; -2 where unknown."""
    known = (depth > 0) & depth.isfinite()
    inverse = torch.where(known, 1 / (depth.double() + 1e-6), 0.0)
    low = torch.where(known, inverse, torch.inf).flatten(1).amin(1)[:, None, None]
    high = inverse.flatten(1).amax(1)[:, None, None]
    scaled = 2 * (inverse - low) / (high - low).clamp_min(1e-12) - 1
    return F.interpolate(torch.where(known, scaled, UNKNOWN)[:, None].float(), (height, width), mode="nearest")


def masked_images(views: Tensor, given: Tensor, convention: Convention = "code") -> Tensor:
    """Mask images but for `given` views (F,) or pixels (F, H, W), bool."""
    return torch.where(_pixels(given)[..., None], views, MASKED_GREY[convention])


def mask_channels(latents: Tensor, given: Tensor, convention: Convention = "code") -> Tensor:
    """Join mask and latents (F, C, h, w) of `masked_images`: (F, 1 + C, h, w). Latents need all their pixels."""
    hole = F.adaptive_max_pool2d((~_pixels(given)).to(latents)[:, None], latents.shape[-2:])
    return torch.cat([hole if convention == "code" else 1 - hole, latents], 1)


def given_latents(extra: Tensor, convention: Convention = "code") -> tuple[Tensor, Tensor]:
    """Split `mask_channels` (F, 1 + C, h, w): ones where latents are given (F, 1, h, w), and latents (F, C, h, w)."""
    mask, latents = extra[:, :1], extra[:, 1:]
    return 1 - mask if convention == "code" else mask, latents


def _pixels(given: Tensor) -> Tensor:
    return given[:, None, None] if given.dim() == 1 else given


def given_condition(latents: Tensor, given: Tensor) -> Tensor:
    """Return the input (F, C + 1, h, w) of the branch for given views: clean latents and ones, else zeros."""
    marked = F.pad(latents, (0, 0, 0, 0, 0, 1), value=1.0)
    return marked * given.to(latents)[:, None, None, None]
