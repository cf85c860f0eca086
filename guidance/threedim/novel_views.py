"""A trained novel-view model as a ``threedgen.geometry.views.NovelViewSampler``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from threedgen.config import ConfigError, config_hash
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.views import Request, Views, resize
from threedgen.run.dtypes import compute_dtype
from threedgen.run.seeding import generator

from . import folder
from .options import CamerasConfig, SamplingConfig, ThreeDiMSamplerConfig
from .sampler import Progress, sample_views

logger = logging.getLogger(__name__)

BEYOND, FARTHER = 15.0, 1.1
"""Degrees outside the elevations, and a factor outside the distances of its training: beyond, a model is guessing."""
SAME = 1e-3
"""Intrinsics, in heights of the picture, that differ by less are the same."""


class ThreeDiMSampler:
    """Draws the target views of a scene one after the other, in their order; scenes of equal shape go together."""

    needs_text, needs_condition, on_disk = False, True, False

    def __init__(self, config: ThreeDiMSamplerConfig, progress: Progress | None = None) -> None:
        """Raises ConfigError if the weights cannot be loaded or are not of pictures."""
        self.config, self.progress = config, progress
        model, self.cameras = folder.load(config.weights)
        gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
        self.device = torch.device("cuda" if gpu else "cpu")
        self.model: Any = model.to(self.device)
        self.dtype = compute_dtype(config.dtype, self.device)
        if config.compile:
            self.model.unet.compile()

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        alike: dict[tuple[int, int], list[int]] = {}
        for k, request in enumerate(requests):
            self.warn(request)
            alike.setdefault((len(given(request)), len(request.target)), []).append(k)
        drawn: dict[int, Tensor] = {}
        for places in alike.values():
            drawn |= dict(zip(places, self.draw([requests[k] for k in places]), strict=True))
        return [drawn[k] for k in range(len(requests))]

    def draw(self, requests: Sequence[Request]) -> Tensor:
        """Scenes with as many given and as many target views: (S, T, H, W, 3) in [0, 1], in the model's resolution."""
        height, width = self.model.picture_size
        images = torch.stack([resize(given(r).images, height, width) for r in requests]).to(self.device)
        x = self.model.from_pictures(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        c2w = torch.stack([given(r).cameras.c2w for r in requests]).to(self.device)
        targets = torch.stack([r.target.c2w for r in requests]).to(self.device)
        K = torch.stack([intrinsics(r, height, width) for r in requests]).to(self.device)
        how: Any = self.config.model_dump(include=set(SamplingConfig.model_fields))
        rngs = [generator(r.seed, 0, f"novel views of {r.scene}") for r in requests]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            views = sample_views(self.model, x, c2w, targets, K, rngs, **how, progress=self.progress)
        pictures = torch.cat([self.model.to_pictures(one) for one in views.flatten(0, 1).split(16)])
        return pictures.float().cpu().unflatten(0, views.shape[:2])

    def fingerprint(self) -> str:
        rest = self.config.model_copy(update={"weights": None, "device": "auto", "compile": False})
        return f"{folder.digest(self.config.weights)} {config_hash(rest)}"

    def warn(self, request: Request) -> None:
        """Says which target views are far outside the cameras of the training."""
        if self.cameras is not None and (far := far_outside(request.target, self.cameras)):
            logger.warning(
                "%s: %d target views are far outside the cameras that the model was trained with, such as number %d",
                request.scene,
                len(far),
                request.numbers[far[0]],
            )


def given(request: Request) -> Views:
    """The given views. Raises ConfigError if there are none."""
    if request.condition is None or not len(request.condition):
        raise ConfigError(f"{request.scene}: this sampler needs a given view, and there is none")
    return request.condition


def intrinsics(request: Request, height: int, width: int) -> Tensor:
    """K (3, 3) of all views of a request in pixels of ``height`` x ``width``. Raises ConfigError if they differ."""
    both = given(request).cameras.with_size(height, width).K, request.target.with_size(height, width).K
    every = torch.cat(both)
    if (every - every[0]).abs().max() > SAME * height:
        raise ConfigError(f"{request.scene}: its views have several focal lengths or principal points; 3DiM needs one")
    return every[0]


def far_outside(at: Cameras, cameras: CamerasConfig) -> list[int]:
    """Places of cameras that are unlike those of the training."""
    distance = at.position.norm(dim=-1).clamp(min=1e-9)
    elevation = torch.rad2deg(torch.asin((at.position[:, 2] / distance).clamp(-1, 1)))
    (low, high), (near, far) = cameras.elevation, cameras.distance
    outside = (elevation < low - BEYOND) | (elevation > high + BEYOND)
    outside |= (distance < near / FARTHER) | (distance > far * FARTHER)
    return outside.nonzero()[:, 0].tolist()
