"""Sampling strategies of latent models: coarse-to-fine (half size first), img2img start, synchronised views.

Coarse-to-fine sampling follows Imagen (arXiv 2205.11487), but with one network: it samples images at half the size, at
a fourth of the cost, upscales them and refines them by img2img. Synchronised views follow SyncMVD (arXiv 2311.12891),
but the views are made consistent before each img2img round, not in each denoising step.
"""

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
    """Number of img2img rounds, and the function that makes the views consistent before each round.

    `synchronise` maps all sampled images (B, H, W, 3) in [0, 1], on the CPU, to images of the same shape.
    """

    rounds: int
    synchronise: Callable[[Tensor], Tensor]


NO_SYNC = ViewSync(0, lambda images: images)


def check_image_size(size: Size, unit: int, draft: float | None, keys: tuple[str, str]) -> None:
    """Raise ConfigError if the prior cannot sample images of `size`.

    Args:
        size: (height, width) in pixels.
        unit: number of pixels of which both sides must be multiples.
        draft: option prior.draft; if it is set, half of each side must also be a multiple of `unit`.
        keys: config keys of height and width, for the message.
    """
    for side, key in zip(size, keys, strict=True):
        if side % unit:
            below = side // unit * unit
            near = f"{below} or {below + unit}" if below else f"{unit}"
            raise ConfigError(f"image sides must be multiples of {unit}; try {near}", key, f"{size[0]} x {size[1]}")
    with within("prior"):
        check_half_size(size, draft, unit)


def check_half_size(size: Size, draft: float | None, unit: int, key: str = "draft") -> None:
    """Raise ConfigError if `draft` is set and half of a side of `size` is not a multiple of `unit` pixels."""
    if draft is not None and any(side % (2 * unit) for side in size):
        height, width = size
        raise ConfigError(
            f"images of {height} x {width} pixels cannot be sampled at half the size first: sides must be multiples of "
            f"{2 * unit}; or remove {key}",
            key,
            draft,
        )


def img2img_strengths(draft: float | None, rounds: int = 0) -> list[float]:
    """Return the linearly decreasing strengths in (0, 1] of the img2img rounds at full size.

    Args:
        draft: strength of the first round; None: `REFINE_STRENGTH`.
        rounds: number of rounds; 0: one round if `draft` is set, else none.
    """
    times = max(rounds, draft is not None)
    return [(draft or REFINE_STRENGTH) * (times - number) / times for number in range(times)]


def total_steps(steps: int, draft: float | None, rounds: int = 0, init: InitLatents | None = None) -> int:
    """Return the number of denoising steps of all passes of `sample_images`; a pass from noise takes `steps`."""
    first, draft = (1.0, draft) if init is None else (init.strength, None)
    return sum(max(1, round(strength * steps)) for strength in [first, *img2img_strengths(draft, rounds)])


SamplePass = Callable[[Size, Tensor, InitLatents | None], Tensor]
"""Function that denoises one pass: (image size, noise (B, C, h, w), img2img start or None) -> latents (B, C, h, w)."""


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
    """Sample images in one or several passes.

    Args:
        model: a latent prior. If `model.draft` is not None, the first pass has half the size, and an img2img pass of
            this strength at full size follows.
        count: number of images.
        size: (H, W) in pixels.
        sample: function that denoises one pass.
        generator: random generator of the noise of all passes, see `fresh_noise`.
        sync: number of img2img rounds after the first pass, and the function that makes the images consistent.
        decode_batch: number of images that are decoded together.
        init: img2img start of the first pass, which then has the full size.

    Returns:
        Images (count, H, W, 3) in [0, 1], on the CPU.
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
    """Resize images (B, h, w, 3) in [0, 1] to `size` by bicubic interpolation: (B, H, W, 3) in [0, 1]."""
    large = F.interpolate(images.permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False)
    return large.clamp(0, 1).permute(0, 2, 3, 1)
