"""Image conditions of MVDiffusion's UNet: input channels (depth, or mask and masked image), and known views.

Images are (F, H, W, 3) in [0, 1], latents (F, C, h, w), depth (F, H, W), 0 or not finite where unknown. `given` is
bool, True for known views (F,) or known pixels (F, H, W).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.config import ConfigError

Extra = Literal["nothing", "depth", "mask"]
UNKNOWN = -2.0
"""Channel value of an unknown inverse depth; known values are in [-1, 1]."""
MASKED_GREY = 0.5


def extra_kind(extra: int, latent: int) -> Extra:
    """Return what the additional input channels of a UNet are for, by their number `extra`.

    "nothing" for 0 channels, "depth" for 1, "mask" for `latent` + 1: a mask and the masked image as latents with
    `latent` channels. Raises ConfigError for any other number.
    """
    kinds: dict[int, Extra] = {0: "nothing", 1: "depth", latent + 1: "mask"}
    if extra not in kinds:
        problem = f"neither depth (1) nor a mask and the masked image ({latent + 1})"
        raise ConfigError(f"a UNet with {extra} further input channels takes {problem}", "weights")
    return kinds[extra]


def unknown_channels(kind: Extra, like: Tensor) -> Tensor:
    """Return additional UNet channels (F, E, h, w) of the kind `kind` for images of which nothing is known.

    `like` are the latents (F, C, h, w). "depth": E = 1, all -2. "mask": E = 1 + C, a mask of ones, then C channels of
    zeros. "nothing": E = 0.
    """
    if kind == "depth":
        return torch.full_like(like[:, :1], UNKNOWN)
    mask = torch.ones_like(like[:, :1])
    return torch.cat([mask, torch.zeros_like(like)], 1) if kind == "mask" else like[:, :0]


def depth_channels(depth: Tensor, height: int, width: int) -> Tensor:
    """Convert depth (F, H, W) to inverse depth (F, 1, height, width), scaled to [-1, 1] in each image.

    `height` and `width` are the size of the latents in latent pixels. Resizing is by nearest neighbour. Unknown depth,
    which is at most 0 or not finite, becomes -2.
    """
    known = (depth > 0) & depth.isfinite()
    inverse = torch.where(known, 1 / (depth.double() + 1e-6), 0.0)
    low = torch.where(known, inverse, torch.inf).flatten(1).amin(1)[:, None, None]
    high = inverse.flatten(1).amax(1)[:, None, None]
    scaled = 2 * (inverse - low) / (high - low).clamp_min(1e-12) - 1
    return F.interpolate(torch.where(known, scaled, UNKNOWN)[:, None].float(), (height, width), mode="nearest")


def masked_images(views: Tensor, given: Tensor) -> Tensor:
    """Return images (F, H, W, 3) in [0, 1] with grey (0.5) unknown pixels, as Stable Diffusion inpainting models take.

    `given` is bool, True for known views (F,) or known pixels (F, H, W).
    """
    return torch.where(_pixels(given)[..., None], views, MASKED_GREY)


def mask_channels(latents: Tensor, given: Tensor) -> Tensor:
    """Return additional channels (F, 1 + C, h, w) of an inpainting UNet: mask (1 where unknown), then `latents`.

    `latents` (F, C, h, w) are the encoded images with grey unknown pixels (see `masked_images`). `given` is bool, True
    for known views (F,) or pixels (F, H, W). A latent is known only if all its pixels are known.
    """
    hole = F.adaptive_max_pool2d((~_pixels(given)).to(latents)[:, None], latents.shape[-2:])
    return torch.cat([hole, latents], 1)


def _pixels(given: Tensor) -> Tensor:
    return given[:, None, None] if given.dim() == 1 else given


def given_condition(latents: Tensor, given: Tensor) -> Tensor:
    """Return the input (F, C + 1, h, w) of MVDiffusion's branch for known views: clean latents, then a mask channel.

    `latents` (F, C, h, w) are the encoded views. `given` (F,) is True for known views: their mask is 1. All channels of
    unknown views are 0.
    """
    marked = F.pad(latents, (0, 0, 0, 0, 0, 1), value=1.0)
    return marked * given.to(latents)[:, None, None, None]
