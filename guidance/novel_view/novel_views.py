"""Sampler of novel views with a trained 3DiM model, for the interface `threedgen.geometry.views.NovelViewSampler`."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from threedgen.config import ConfigError, config_hash
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.views import Request, Views, resize
from threedgen.run.dtypes import compute_dtype
from threedgen.run.seeding import generator

from . import folder
from .latents import LatentPairs
from .options import CamerasConfig, ThreeDiMSamplerConfig
from .sampler import Progress, sample_views
from .xunet import XUNet

logger = logging.getLogger(__name__)

DECODE_BATCH = 16
MAX_ELEVATION_GAP, MAX_DISTANCE_RATIO = 15.0, 1.1
"""Degrees of elevation and factor of distance by which cameras may leave the training range without a warning."""
INTRINSICS_TOLERANCE = 1e-3
"""Largest difference, in image heights, between intrinsics that are treated as equal."""


class ThreeDiMSampler:
    """Callable that samples the target views of scenes with a 3DiM model, one view after the other.

    Scenes with equal numbers of input and target views form one batch.
    """

    needs_text, needs_condition, on_disk = False, True, False

    def __init__(self, config: ThreeDiMSamplerConfig, progress: Progress | None = None) -> None:
        """Load the model to the device of `config`. Raises ConfigError if its files are missing or damaged.

        `progress` is called after each step, see `sampler.sample_views`.
        """
        self.config, self.progress = config, progress
        model, self.cameras = folder.load(config.weights)
        gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
        self.device = torch.device("cuda" if gpu else "cpu")
        self.model: XUNet | LatentPairs = model.to(self.device)
        self.dtype = compute_dtype(config.dtype, self.device)
        if config.compile:
            self.model.unet.compile()

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        batches: dict[tuple[int, int], list[int]] = {}
        for k, request in enumerate(requests):
            self.warn(request)
            batches.setdefault((len(condition_views(request)), len(request.target)), []).append(k)
        views: dict[int, Tensor] = {}
        for numbers in batches.values():
            views |= dict(zip(numbers, self.sample([requests[k] for k in numbers]), strict=True))
        return [views[k] for k in range(len(requests))]

    def sample(self, requests: Sequence[Request]) -> Tensor:
        """Sample the T target views of S scenes, all with the same numbers of input and target views.

        Returns images (S, T, H, W, 3) in [0, 1] on the CPU, in the resolution of the model.
        """
        height, width = self.model.image_size
        images = torch.stack([resize(condition_views(r).images, height, width) for r in requests]).to(self.device)
        x = self.model.encode_images(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        c2w = torch.stack([condition_views(r).cameras.c2w for r in requests]).to(self.device)
        targets = torch.stack([r.target.c2w for r in requests]).to(self.device)
        K = torch.stack([intrinsics(r, height, width) for r in requests]).to(self.device)
        o = self.config
        rngs = [generator(r.seed, 0, f"novel views of {r.scene}") for r in requests]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            views = sample_views(
                self.model, x, c2w, targets, K, rngs, o.strategy, o.last, o.steps, o.guidance_scale, self.progress
            )
        decoded = torch.cat([self.model.decode_images(part) for part in views.flatten(0, 1).split(DECODE_BATCH)])
        return decoded.float().cpu().unflatten(0, views.shape[:2])

    def fingerprint(self) -> str:
        rest = self.config.model_copy(update={"weights": None, "device": "auto", "compile": False})
        return f"{folder.digest(self.config.weights)} {config_hash(rest)}"

    def warn(self, request: Request) -> None:
        """Log a warning if target cameras are far outside the range of the training cameras."""
        if self.cameras is not None and (far := far_outside(request.target, self.cameras)):
            logger.warning(
                "%s: %d target views are far outside the training cameras of the model, such as number %d",
                request.scene,
                len(far),
                request.numbers[far[0]],
            )


def condition_views(request: Request) -> Views:
    """Return the input views of a request. Raises ConfigError if there are none."""
    if request.condition is None or not len(request.condition):
        raise ConfigError(f"{request.scene} has no input view, which this sampler needs")
    return request.condition


def intrinsics(request: Request, height: int, width: int) -> Tensor:
    """Return the intrinsics (3, 3) in pixels that all views of a request share, for images of height x width.

    Raises ConfigError if the views have different intrinsics.
    """
    both = condition_views(request).cameras.with_size(height, width).K, request.target.with_size(height, width).K
    every = torch.cat(both)
    if (every - every[0]).abs().max() > INTRINSICS_TOLERANCE * height:
        raise ConfigError(f"{request.scene}: its views have several focal lengths or principal points; 3DiM needs one")
    return every[0]


def far_outside(at: Cameras, cameras: CamerasConfig) -> list[int]:
    """Return the indices of the cameras `at` that are far outside the range of the training `cameras`."""
    distance = at.position.norm(dim=-1).clamp(min=1e-9)
    elevation = torch.rad2deg(torch.asin((at.position[:, 2] / distance).clamp(-1, 1)))
    (low, high), (near, far) = cameras.elevation, cameras.distance
    outside = (elevation < low - MAX_ELEVATION_GAP) | (elevation > high + MAX_ELEVATION_GAP)
    outside |= (distance < near / MAX_DISTANCE_RATIO) | (distance > far * MAX_DISTANCE_RATIO)
    return outside.nonzero()[:, 0].tolist()
