"""DDIM sampling of latents (Song et al. 2021, arXiv 2010.02502): from noise, by img2img, or in several passes.

Coarse-to-fine sampling follows Imagen (arXiv 2205.11487), but one network samples at half the size and refines by
img2img. Synchronised views follow SyncMVD (arXiv 2311.12891), but are made consistent only before each img2img round.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import key_prefix
from threedgen.run.memory import to_device

from .schedule import Schedule

Generators = torch.Generator | Sequence[torch.Generator] | None
Predict = Callable[[Tensor, Tensor], Tensor]
"""Function (latents (B, C, h, w), timesteps (B,)) -> predicted noise (B, C, h, w), such as the result of `guided`."""
OnStep = Callable[[int, int], object]
"""Callback with (number of steps done, total number of steps), called before the first step and after each step."""
Size = tuple[int, int]
"""(height, width) of an image in pixels."""
REFINE_STRENGTH = 0.3
"""Default img2img strength at full size, after a sample of half the size and for synchronised views."""


class InitLatents(NamedTuple):
    """Start of an img2img sample: clean latents (B, C, h, w) and the noise strength in (0, 1]."""

    latents: Tensor
    strength: float


class ViewSync(NamedTuple):
    """Option to make the views of an object consistent during sampling, by rounds of img2img.

    Attributes:
        rounds: number of img2img rounds after the first pass; 0: none.
        synchronise: function from the images of all views (B, H, W, 3) in [0, 1] to consistent images, called before
            each round.
    """

    rounds: int
    synchronise: Callable[[Tensor], Tensor]


NO_SYNC = ViewSync(0, lambda images: images)


def no_callback(done: int, steps: int) -> None:
    """Do nothing: the default progress callback."""


def before_steps(callback: Callable[[], None]) -> OnStep:
    """Return a progress callback (steps done, total steps) that calls `callback()` before each step.

    Progress callbacks are also called after the last step; `callback` is not.
    """
    return lambda done, steps: callback() if done < steps else None


def ddim_timesteps(steps: int, T: int = 1000) -> Tensor:
    """Return the ascending timesteps at which DDIM calls the network, (steps,) int64, evenly spaced in 0..T-1.

    They are floor(i T / steps) + 1 for i = 0..steps-1. If `steps` = `T`, where this would end at T, they are 0..T-1.
    Stable Diffusion's own code gives the same timesteps if `steps` divides `T`.

    Args:
        steps: number of DDIM steps, at most `T`.
        T: number of timesteps to choose from, beginning with the least noisy one. For sampling from noise, these are
            all training timesteps; for img2img, a share of them equal to the noise strength of the start.
    """
    # With steps = T the offset of 1 would give t = T, which has no alpha_bar.
    return torch.arange(steps) * T // steps + (1 if steps < T else 0)


def ddim_alphas(schedule: Schedule, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha_bar, the signal's share of the variance, before and after the DDIM step at each of `timesteps`.

    `timesteps` (steps,) ascend. Both results are (steps,) float64 on the CPU. The last step, at timesteps[0], ends at
    alpha_bar[0] as in Stable Diffusion, instead of 1 (diffusers: set_alpha_to_one=False).
    """
    alpha_bar = schedule.alpha_bar.cpu().double()
    a = alpha_bar[timesteps]
    return a, torch.cat([alpha_bar[:1], a[:-1]])


def ddim_step(
    x: Tensor, eps: Tensor, a: Tensor, a_prev: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Take one DDIM step (Song et al. 2021, eq. 12); return less noisy latents and predicted clean latents.

    Both are (B, C, h, w).

    Args:
        x, eps: noisy latents and the noise predicted in them, each (B, C, h, w).
        a, a_prev: alpha_bar before and after the step, scalar tensors.
        eta: 0: deterministic DDIM; 1: as much noise as DDPM (eq. 16).
        noise: unit Gaussian noise like `x`, needed if `eta` > 0.
    """
    sigma = eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)).clamp(min=0).sqrt()
    x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    x_prev = a_prev.sqrt() * x0 + (1 - a_prev - sigma**2).clamp(min=0).sqrt() * eps
    return x_prev if noise is None else x_prev + sigma * noise, x0


@torch.no_grad()
def ddim_sample(
    predict: Predict,
    x_T: Tensor,
    schedule: Schedule,
    timesteps: Tensor,
    eta: float = 0.0,
    generator: Generators = None,
    on_step: OnStep = no_callback,
) -> Tensor:
    """Denoise latents by DDIM and return clean latents (B, C, h, w).

    Args:
        predict: function (latents (B, C, h, w), timesteps (B,)) -> predicted noise (B, C, h, w).
        x_T: latents (B, C, h, w) with the noise level of the last timestep.
        timesteps: (steps,) ascending, from `ddim_timesteps`.
        eta: amount of fresh noise in each step; 0: deterministic DDIM; 1: as in DDPM.
        generator: random generator of that noise, or one for each equal part of the batch; None: torch's global one.
        on_step: progress callback (steps done, total steps).
    """
    alphas, alphas_prev = ddim_alphas(schedule, timesteps)
    x = x_T
    on_step(0, len(timesteps))
    for i in reversed(range(len(timesteps))):
        eps = predict(x, torch.full((len(x),), int(timesteps[i]), device=x.device)).to(x.dtype)
        noise = fresh_noise(x, generator) if eta > 0 else None
        x, _ = ddim_step(x, eps, alphas[i], alphas_prev[i], eta, noise)
        on_step(len(timesteps) - i, len(timesteps))
    return x


def sample_latents(
    predict: Predict,
    noise: Tensor,
    schedule: Schedule,
    steps: int,
    init: InitLatents | None = None,
    eta: float = 0.0,
    generator: Generators = None,
    on_step: OnStep = no_callback,
) -> Tensor:
    """Sample clean latents (B, C, h, w) from noise, or by img2img (SDEdit, Meng et al. 2022, arXiv 2108.01073).

    Args:
        predict: function (latents (B, C, h, w), timesteps (B,)) -> predicted noise (B, C, h, w).
        noise: unit Gaussian noise (B, C, h, w): the start, or for img2img the noise that is added to the start.
        schedule: noise schedule of the model.
        steps: number of DDIM steps from pure noise; img2img takes round(init.strength * steps), at least one.
        init: img2img start: clean `latents` (B, C, h, w), and `strength` in (0, 1], the fraction of the timesteps up to
            which they are noised. None: start from pure noise.
        eta: amount of fresh noise in each step; 0: deterministic DDIM; 1: as in DDPM.
        generator: random generator of the fresh noise, or one per equal part of the batch; None: torch's global one.
        on_step: progress callback (steps done, total steps).
    """
    x, T = noise, schedule.T
    if init is not None:
        steps = max(1, round(init.strength * steps))
        T = max(steps, round(init.strength * schedule.T))
        x = schedule.add_noise(init.latents, noise, ddim_timesteps(steps, T)[-1].to(noise.device))
    return ddim_sample(predict, x, schedule, ddim_timesteps(steps, T), eta, generator, on_step)


def fresh_noise(like: Tensor, generator: Generators = None) -> Tensor:
    """Sample unit Gaussian noise with the shape, dtype and device of `like` (B, ...).

    Noise is sampled in float32 on the generator's device, so a CPU generator gives the same noise for every device.
    `generator` may be a list of n generators; each of them samples the noise of B / n consecutive images. None: torch's
    global generator.
    """
    if isinstance(generator, Sequence):
        shares = like.split(len(like) // len(generator))
        return torch.cat([fresh_noise(share, one) for share, one in zip(shares, generator, strict=True)])
    device = like.device if generator is None else generator.device
    noise = torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32)
    return to_device(noise, like.device).to(like.dtype)


def check_image_size(size: Size, unit: int, draft: float | None, keys: tuple[str, str]) -> None:
    """Raise ConfigError unless both sides of `size` (H, W) in pixels are multiples of `unit` pixels.

    If the img2img strength `draft` is not None, images are sampled at half the size first, so half of each side must
    also be a multiple of `unit`. `keys` are the config keys of height and width, for the message.
    """
    for side, key in zip(size, keys, strict=True):
        if side % unit:
            below = max(side // unit, 1) * unit
            problem = f"image sides must be multiples of {unit}; try {below} or {below + unit}"
            raise ConfigError(problem, key, f"{size[0]} x {size[1]}")
    with key_prefix("prior"):
        check_half_size(size, draft, unit)


def check_half_size(size: Size, draft: float | None, unit: int, key: str = "draft") -> None:
    """Raise ConfigError unless images of `size` (H, W) can also be sampled with half the height and half the width.

    For that, H and W must be multiples of 2 * `unit`.

    Args:
        size: (H, W) in pixels.
        draft: value of the config key `key`, a number, for the message. None: half-size images are off; nothing is
            checked.
        unit: the model needs images whose height and width are multiples of this number of pixels.
        key: config key that turns on half-size images, for the message: "draft" for a first sampling pass at half the
            size, or "training.half" for training steps at half the size.
    """
    if draft is not None and any(side % (2 * unit) for side in size):
        raise ConfigError(
            f"images of {size[0]} x {size[1]} pixels cannot be sampled at half the size first: sides must be multiples "
            f"of {2 * unit}; or remove {key}",
            key,
            draft,
        )


def img2img_strengths(draft: float | None, rounds: int = 0) -> list[float]:
    """Return the noise strength, in (0, 1], of each img2img round that follows the first pass of sampling.

    Strengths decrease linearly: in n rounds, they are s, s (n - 1) / n, ..., s / n, where s is the first.

    Args:
        draft: strength of the first round; None: 0.3 (`REFINE_STRENGTH`).
        rounds: number of rounds. 0: one round if `draft` is not None, else none.
    """
    times = max(rounds, draft is not None)
    return [(draft or REFINE_STRENGTH) * (times - number) / times for number in range(times)]


def total_steps(steps: int, draft: float | None, rounds: int = 0, init: InitLatents | None = None) -> int:
    """Return the number of denoising steps of all passes of `sample_images`.

    A pass from noise takes `steps` steps, an img2img pass round(strength * steps), at least one. If `init` is given,
    `draft` is ignored, as if it were None. The passes are:

    1. The first pass, from noise, or by img2img from `init`.
    2. n = `rounds` img2img passes. If `draft` is not None, n is at least 1. The strengths fall linearly from s to s /
       n, where s is `draft`, or 0.3 (`REFINE_STRENGTH`) if it is None.

    Args:
        draft: img2img strength at full size after a first pass at half the size; None: the first pass has full size.
        rounds: number of img2img passes that make views consistent (`ViewSync.rounds`).
        init: img2img start of the first pass, with its strength; None: the first pass starts from noise.
    """
    first, draft = (1.0, draft) if init is None else (init.strength, None)
    return sum(max(1, round(strength * steps)) for strength in [first, *img2img_strengths(draft, rounds)])


SamplePass = Callable[[Size, Tensor, InitLatents | None], Tensor]
"""Function (image size, noise (B, C, h, w), img2img start or None) -> clean latents (B, C, h, w) of one pass."""


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
    """Sample images in one or several passes and return them, (count, H, W, 3) in [0, 1], on the CPU.

    Let `draft` be `model.draft` (an img2img strength or None), or None if `init` is given. The passes are:

    1. A first pass from noise, or by img2img from `init`. It has half the size if `draft` is not None, else the full
       size.
    2. n = `sync.rounds` img2img passes at full size, each from the images of the pass before. If `draft` is not None, n
       is at least 1. The noise strengths fall linearly from s to s / n, where s is `draft`, or 0.3 (`REFINE_STRENGTH`)
       if it is None.

    If `sync.rounds` is not 0, `sync.synchronise` makes the images consistent before each of the n passes.

    Args:
        model: a latent diffusion model (`LatentDiffusion`), whose VAE encodes and decodes the images.
        count: number of images.
        size: (H, W) of the result in pixels.
        sample: function (size, noise (count, C, h, w), img2img start or None) -> clean latents (count, C, h, w), for
            one pass. It gets the image size of the pass in pixels, full or half; h and w are the size of the latents.
        generator: random generator of the noise from which the passes start, or a list of m generators, each for
            count/m consecutive images; None: torch's global generator.
        sync: number of img2img rounds that make the images consistent, and the function for it; the default has no
            rounds.
        decode_batch: number of images that are decoded together.
        init: img2img start of the first pass; None: that pass starts from noise.
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
    """Resize images (B, h, w, 3) in [0, 1] to (B, H, W, 3), `size` = (H, W), by bicubic interpolation."""
    large = F.interpolate(images.permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False)
    return large.clamp(0, 1).permute(0, 2, 3, 1)
