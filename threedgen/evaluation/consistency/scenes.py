"""Describes what a sampler is asked to draw, and how the original data looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from threedgen.config import ConfigError
from threedgen.data.srn.reader import Instance, condition_and_targets, open_instance, scenes, split_folder
from threedgen.data.toybox.raycast import render
from threedgen.evaluation.toybox.held_out import Case, held_out_cases
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import to_uint8
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Request, Views, resize

from .options import SampledScenesConfig, SRNScenesConfig, ToyboxScenesConfig
from .samplers import LEAST, FolderSampler

GREY = 0.5
"""Behind the toybox's objects, as the prior draws them."""


@dataclass(frozen=True)
class Scene:
    """One scene: all its cameras, which views are given (places), words, and how to get original views by place."""

    name: str
    at: Cameras
    numbers: tuple[int, ...]
    condition: tuple[int, ...] = ()
    text: str = ""
    original: Callable[[Sequence[int]], Views] | None = None

    @property
    def targets(self) -> list[int]:
        """Places of the views that a sampler draws, in the order in which it does: on from the view given last, then
        back from it. So those that are drawn first are beside the given one, and neighbours follow each other."""
        start = self.condition[-1] if self.condition else -1
        outward = [*range(start + 1, len(self.at)), *reversed(range(max(start, 0)))]
        return [k for k in outward if k not in self.condition]

    def request(self, seed: int, pictures: bool = True) -> Request:
        """Words what a sampler is asked for; without ``pictures`` the given views are left out."""
        given = self.original(self.condition) if pictures and self.original and self.condition else None
        numbers = tuple(self.numbers[k] for k in self.targets)
        return Request(self.name, given, self.at.select(self.targets), numbers, self.text, seed)

    def together(self, request: Request, drawn: torch.Tensor) -> Views:
        """Joins all views of the scene in their order: those given, which the sampler was shown, and those drawn."""
        images = torch.empty(len(self.at), *drawn.shape[1:])
        images[self.targets] = drawn
        if request.condition is not None:
            images[list(self.condition)] = request.condition.images
        return Views(images, self.at)


def toybox(config: ToyboxScenesConfig, sampler: Any, seed: int) -> list[Scene]:
    """Makes scenes of held-out captions; the original data is a fresh object of the same caption."""
    half = np.tan(np.deg2rad(config.fov) / 2)
    fov, distance = float(np.deg2rad(config.fov)), config.relative_distance / float(half)
    steep = float(np.deg2rad(config.elevation))
    at = orbit(config.views, steep, distance, fov, config.size, config.size)

    def original(case: Case) -> Callable[[Sequence[int]], Views]:
        def photograph(places: Sequence[int]) -> Views:
            there = at.select(list(places))
            which, same = np.zeros(len(there), np.int64), np.full(len(there), fov)
            picture = render([case.truth(seed)], which, there.c2w.numpy(), same, config.size, GREY, 3)
            return Views(torch.from_numpy(picture.rgb), there)

        return photograph

    return [
        Scene(f"{k:03d}-{case.caption.replace(' ', '-')}", at, tuple(range(len(at))), (), case.caption, original(case))
        for k, case in enumerate(held_out_cases(config.count, seed, spread=True))
    ]


def srn(config: SRNScenesConfig, sampler: Any, seed: int) -> list[Scene]:
    """Reads scenes of an archive, the standard protocol: one view is given, the others are targets."""
    found = scenes(split_folder(config.path, config.split))
    chosen = [found[k] for k in evenly(len(found), config.count)]
    return [_from_archive(config, open_instance(path, config.up, LEAST)) for path in chosen]


def _from_archive(config: SRNScenesConfig, instance: Instance) -> Scene:
    instance.verify()
    given, targets = condition_and_targets(instance, config.condition)
    keep = targets if config.views is None else [targets[k] for k in evenly(len(targets), config.views - 1)]
    places = sorted([given, *keep])
    at = instance.at.select(places)
    if config.size is not None:
        at = at.with_size(config.size, config.size)
    numbers = tuple(instance.numbers[k] for k in places)

    def original(chosen: Sequence[int]) -> Views:
        return instance.views([places[k] for k in chosen], config.size)

    return Scene(instance.name, at, numbers, (places.index(given),), original=original)


def sampled(config: SampledScenesConfig, sampler: Any, seed: int) -> list[Scene]:
    """Takes the scenes that a folder has, without original data."""
    if not isinstance(sampler, FolderSampler):
        raise ConfigError("'sampled' are those of a folder of samples, and the sampler is none", "scenes")
    return [Scene(name, one.at, one.numbers) for name, one in sampler.instances.items()]


def evenly(count: int, most: int) -> list[int]:
    """Chooses at most ``most`` of ``count`` places, evenly, the first and the last among them."""
    return np.unique(np.round(np.linspace(0, count - 1, min(most, count))).astype(int)).tolist()


def fit_to(scene: Scene, images: torch.Tensor) -> torch.Tensor:
    """Brings a sampler's pictures (N, h, w, 3) to 8-bit values in [0, 1] and the scene's size, as a file would."""
    size = (scene.at.height, scene.at.width)
    if tuple(images.shape[1:3]) != size:
        images = resize(images, *size)
    return torch.from_numpy(to_uint8(images)).float() / 255
