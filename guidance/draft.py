"""Drawing in two sizes: at half of it, where what is where is decided at a fourth of the cost; then enlarged, noised a
little and drawn again, which makes it crisp. And drawing anew in the same way what was brought to agree.

As Imagen and others draw (arXiv 2205.11487: a small picture first), but by one network; the second drawing goes on from
the first as in SDEdit (arXiv 2108.01073). Views of one surface that are put on it agree, as in SyncMVD (arXiv
2311.12891), which does so in each step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import within
from threedgen.guidance.diffusion import Conditions, Denoiser, Generators, OnStep, ddim_redraw, ddim_sample, fresh_noise
from threedgen.guidance.schedule import Schedule

Size = tuple[int, int]
DRAFT = 0.3
"""The share of all noise with which a model that learns both sizes draws its samples again."""


class Begun(NamedTuple):
    """What a sample goes on from: latents (B,C,h,w), and the share of all noise, in (0, 1], that is added to them."""

    latents: Tensor
    strength: float


class Synchronised(NamedTuple):
    """How often pictures (B,H,W,3) are brought to agree and drawn again, and what brings them to it."""

    rounds: int
    agree: Callable[[Tensor], Tensor]


ALONE = Synchronised(0, lambda pictures: pictures)
"""They are not."""


def check_sides(size: Size, unit: int, draft: float | None, keys: tuple[str, str]) -> None:
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


def strengths(draft: float | None, rounds: int = 0) -> list[float]:
    """With how much of all noise what is begun is drawn again, each time: less and less in more than one of ``rounds``,
    so that what was brought to agree is kept in the end. Nothing: without draft and rounds."""
    times = max(rounds, draft is not None)
    return [(draft or DRAFT) * (times - number) / times for number in range(times)]


def steps_in_all(steps: int, draft: float | None, rounds: int = 0, guess: Begun | None = None) -> int:
    """How many steps a sampling of ``steps`` has in both sizes, or from a ``guess`` on, and in all ``rounds``."""
    first, draft = (1.0, draft) if guess is None else (guess.strength, None)
    return sum(max(1, round(strength * steps)) for strength in [first, *strengths(draft, rounds)])


Draw = Callable[[Size, Tensor, Begun | None], Tensor]
"""Of pictures of a size, noise (B,C,h,w), and what they go on from: the latents (B,C,h,w)."""


def in_both_sizes(
    model: Any,
    count: int,
    size: Size,
    draw: Draw,
    generator: Generators = None,
    synchronised: Synchronised = ALONE,
    together: int = 1,
    guess: Begun | None = None,
) -> Tensor:
    """``count`` pictures (B,H,W,3) in [0,1], on the CPU, that ``draw`` makes from noise or from what is begun: once, or
    twice where ``model.draft`` says with how much noise.

    synchronised: before each of so many drawings from what is begun.  together: pictures that are decoded at once.
    guess: what they go on from instead of noise; then no smaller ones are drawn.
    """

    def drawn(size: Size, begun: Begun | None = None) -> Tensor:
        shape = (count, model.latent_shape[0], *(side // model.factor for side in size))
        noise = fresh_noise(torch.empty(shape, device=model.device), generator)
        parts = draw(size, noise, begun).split(together)
        return torch.cat([model.decode_latents(part).float().cpu() for part in parts])

    draft = None if guess is not None else model.draft
    pictures = drawn(size, guess) if draft is None else enlarged(drawn((size[0] // 2, size[1] // 2)), size)
    for strength in strengths(draft, synchronised.rounds):
        if synchronised.rounds:
            pictures = synchronised.agree(pictures)
        pictures = drawn(size, Begun(model.encode_views(pictures), strength))
    return pictures


def enlarged(pictures: Tensor, size: Size) -> Tensor:
    """(B,h,w,3) in [0,1] -> (B,H,W,3)."""
    big = F.interpolate(pictures.permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False)
    return big.clamp(0, 1).permute(0, 2, 3, 1)


def before_each(on_step: Callable[[], None]) -> OnStep:
    """Has ``on_step`` called before each step."""
    return lambda done, steps: on_step() if done < steps else None


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
