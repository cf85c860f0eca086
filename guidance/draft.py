"""Drawing in two sizes: at half of it, where what is where is decided at a fourth of the cost; then enlarged, noised a
little and drawn again, which makes it crisp.

As Imagen and others draw (arXiv 2205.11487: a small picture first), but by one network; the second drawing goes on from
the first as in SDEdit (arXiv 2108.01073).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import within
from threedgen.guidance.diffusion import Conditions, Denoiser, Generators, OnStep, ddim_redraw, ddim_sample
from threedgen.guidance.schedule import Schedule

Size = tuple[int, int]
DRAFT = 0.3
"""The share of all noise with which a model that learns both sizes draws its samples again."""


class Begun(NamedTuple):
    """What a sample goes on from: latents (B,C,h,w), and the share of all noise, in (0, 1], that is added to them."""

    latents: Tensor
    strength: float


def check_sides(size: Size, unit: int, draft: float | None, keys: tuple[str, str] = ("", "")) -> None:
    """Raises ConfigError for pictures (H,W) whose sides are no multiples of ``unit``, or that cannot be halved where
    the option prior.draft asks for it; ``keys``: the options of height and width."""
    for side, key in zip(size, keys, strict=True):
        if side % unit:
            below = side // unit * unit
            near = f"{below} or {below + unit}" if below else f"{unit}"
            wrong = f"the sides of pictures should be multiples of {unit}; try {near}"
            raise ConfigError(wrong, key, f"{size[0]} x {size[1]}")
    with within("prior"):
        check_halves(size, draft, unit)


def check_halves(size: Size, draft: float | None, unit: int, key: str = "draft") -> None:
    """Raises ConfigError if pictures (H,W) are drawn at half the size first, and that is no multiple of ``unit``."""
    if draft is not None and any(side % (2 * unit) for side in size):
        height, width = size
        raise ConfigError(
            f"pictures of {height} x {width} pixels cannot be drawn at half the size first: their sides should be "
            f"multiples of {2 * unit}; or leave {key} out",
            key,
            draft,
        )


def steps_in_all(steps: int, draft: float | None) -> int:
    """How many steps a sampling of ``steps`` has in both sizes."""
    return steps + (0 if draft is None else max(1, round(draft * steps)))


def in_both_sizes(model: Any, size: Size, draw: Callable[[Size, Begun | None], Tensor]) -> Tensor:
    """Pictures (B,H,W,3) that ``draw`` makes of a size, from noise or from what is begun: once, or twice where
    ``model.draft`` says with how much noise."""
    if model.draft is None:
        return draw(size, None)
    small = draw((size[0] // 2, size[1] // 2), None)
    return draw(size, Begun(model.encode_views(enlarged(small, size)), model.draft))


def enlarged(pictures: Tensor, size: Size) -> Tensor:
    """(B,h,w,3) in [0,1] -> (B,H,W,3)."""
    big = F.interpolate(pictures.permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False)
    return big.clamp(0, 1).permute(0, 2, 3, 1)


def ddim(
    denoise: Denoiser,
    noise: Tensor,
    given: Conditions,
    schedule: Schedule,
    steps: int,
    eta: float = 0.0,
    generator: Generators = None,
    begun: Begun | None = None,
    on_step: OnStep = lambda done, steps: None,
) -> Tensor:
    """A sample (B,C,h,w) from ``noise``, or from what is begun, by the share of the ``steps`` that is left."""
    if begun is not None:
        z, strength = begun
        return ddim_redraw(denoise, z, noise, given, schedule, steps, strength, on_step, eta, generator)
    camera, n_view = given.camera, given.n_view
    return ddim_sample(denoise, noise, given, camera, n_view, schedule, steps, eta, generator, on_step=on_step)
