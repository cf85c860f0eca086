"""Sampling strategies of latent models: coarse-to-fine (half size first), img2img start, synchronised views.

Coarse-to-fine as in Imagen (arXiv 2205.11487), but by one network: a sample at half the size, at a fourth of the cost,
is enlarged and refined by img2img.  Synchronised views as in SyncMVD (arXiv 2311.12891), between img2img rounds instead
of in each step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import within

from .sampling import Generators, InitLatents, fresh_noise

Size = tuple[int, int]
"""Height and width of an image in pixels."""
REFINE_STRENGTH = 0.3
"""Default img2img strength at full size, after a sample of half the size."""


class ViewSync(NamedTuple):
    """Img2img rounds, and the function that makes views (B, H, W, 3) consistent before each."""

    rounds: int
    synchronise: Callable[[Tensor], Tensor]


NO_SYNC = ViewSync(0, lambda images: images)


def check_image_size(size: Size, unit: int, draft: float | None, keys: tuple[str, str]) -> None:
    """Raise ConfigError for images whose sides are no multiples of `unit`, or cannot be halved if prior.draft is set.

    Args:
        keys: options of height and width.
    """
    for side, key in zip(size, keys, strict=True):
        if side % unit:
            below = side // unit * unit
            near = f"{below} or {below + unit}" if below else f"{unit}"
            raise ConfigError(f"image sides must be multiples of {unit}; try {near}", key, f"{size[0]} x {size[1]}")
    with within("prior"):
        check_half_size(size, draft, unit)


def check_half_size(size: Size, draft: float | None, unit: int, key: str = "draft") -> None:
    """Raise ConfigError if images are sampled at half the size first and that is no multiple of `unit`."""
    if draft is not None and any(side % (2 * unit) for side in size):
        height, width = size
        raise ConfigError(
            f"images of {height} x {width} pixels cannot be sampled at half the size first: sides must be multiples of "
            f"{2 * unit}; or remove {key}",
            key,
            draft,
        )


def img2img_strengths(draft: float | None, rounds: int = 0) -> list[float]:
    """Return the strength of each img2img round at full size, decreasing; empty without `draft` and `rounds`."""
    times = max(rounds, draft is not None)
    return [(draft or REFINE_STRENGTH) * (times - number) / times for number in range(times)]


def total_steps(steps: int, draft: float | None, rounds: int = 0, init: InitLatents | None = None) -> int:
    """Return the number of denoising steps of all passes, where `steps` is that from noise."""
    first, draft = (1.0, draft) if init is None else (init.strength, None)
    return sum(max(1, round(strength * steps)) for strength in [first, *img2img_strengths(draft, rounds)])


SamplePass = Callable[[Size, Tensor, InitLatents | None], Tensor]
"""One pass at an image size: noise (B, C, h, w) and an optional img2img start -> latents (B, C, h, w)."""


def sample_images(
    model: Any,
    count: int,
    size: Size,
    sample: SamplePass,
    generator: Generators = None,
    sync: ViewSync = NO_SYNC,
    decode_batch: int = 1,
    init: InitLatents | None = None,
) -> Tensor:
    """Sample images (count, H, W, 3) in [0, 1], on the CPU.

    Args:
        model: a latent model; `model.draft`: strength of the pass at full size after one at half the size, or None.
        sample: one pass.
        sync: rounds of synchronisation and img2img after the first pass.
        decode_batch: images decoded together.
        init: img2img start of the first pass; then there is no pass at half the size.
    """

    def decoded(size: Size, start: InitLatents | None = None) -> Tensor:
        shape = (count, model.latent_shape[0], *(side // model.factor for side in size))
        noise = fresh_noise(torch.empty(shape, device=model.device), generator)
        parts = sample(size, noise, start).split(decode_batch)
        return torch.cat([model.decode_latents(part).float().cpu() for part in parts])

    draft = None if init is not None else model.draft
    images = decoded(size, init) if draft is None else upscale(decoded((size[0] // 2, size[1] // 2)), size)
    for strength in img2img_strengths(draft, sync.rounds):
        if sync.rounds:
            images = sync.synchronise(images)
        images = decoded(size, InitLatents(model.encode_views(images), strength))
    return images


def upscale(images: Tensor, size: Size) -> Tensor:
    """Resize images (B, h, w, 3) in [0, 1] to (B, H, W, 3), bicubic."""
    large = F.interpolate(images.permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False)
    return large.clamp(0, 1).permute(0, 2, 3, 1)
