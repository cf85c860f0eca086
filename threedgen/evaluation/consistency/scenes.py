"""Describes what a sampler is asked to draw, how the original data looks, and which views a field does not see; warns
of cameras from which it cannot be expected to know them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from threedgen.config import ConfigError
from threedgen.config.errors import within
from threedgen.data.srn.reader import Instance, open_instance
from threedgen.data.srn.scene_files import condition_and_targets
from threedgen.data.toybox.raycast import render
from threedgen.evaluation.toybox.held_out import Case, held_out_cases
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import to_uint8
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Request, Views, resize
from threedgen.run.arrays import evenly_spaced
from threedgen.run.seeding import numpy_generator

from .options import LEAST, SampledScenesConfig, SRNScenesConfig, ToyboxScenesConfig
from .samplers import FolderSampler

logger = logging.getLogger(__name__)

GREY = 0.5
"""Behind the toybox's objects, as the prior draws them."""
ASIDE = 0.25
"""Of the cameras' distance: so far from the origin the point that they look at is another scene's middle."""


@dataclass(frozen=True)
class Scene:
    """One scene: all its cameras, which views are given (places), words, and how to get original views by place."""

    name: str
    cameras: Cameras
    numbers: tuple[int, ...]
    condition: tuple[int, ...] = ()
    text: str = ""
    original: Callable[[Sequence[int]], Views] | None = None

    @property
    def targets(self) -> list[int]:
        """Places of the views that a sampler draws, in the order in which it does: on from the view given last, then
        back from it. So those that are drawn first are beside the given one, and neighbours follow each other."""
        start = self.condition[-1] if self.condition else -1
        outward = [*range(start + 1, len(self.cameras)), *reversed(range(max(start, 0)))]
        return [k for k in outward if k not in self.condition]

    def request(self, seed: int, pictures: bool = True) -> Request:
        """Words what a sampler is asked for; without ``pictures`` the given views are left out."""
        given = self.original(self.condition) if pictures and self.original and self.condition else None
        numbers = tuple(self.numbers[k] for k in self.targets)
        return Request(self.name, given, self.cameras.select(self.targets), numbers, self.text, seed)

    def together(self, request: Request, drawn: torch.Tensor) -> Views:
        """Joins all views of the scene in their order: those given, which the sampler was shown, and those drawn."""
        images = torch.empty(len(self.cameras), *drawn.shape[1:])
        images[self.targets] = drawn
        if request.condition is not None:
            images[list(self.condition)] = request.condition.images
        return Views(images, self.cameras)


def toybox(config: ToyboxScenesConfig, sampler: Any, seed: int) -> list[Scene]:
    """Makes scenes of held-out captions; the original data is a fresh object of the same caption."""
    fov, steep = float(np.deg2rad(config.fov)), float(np.deg2rad(config.elevation))
    distance = config.relative_distance / float(np.tan(fov / 2))
    at = orbit(config.views, steep, distance, fov, config.size, config.size)

    def photograph(case: Case, places: Sequence[int]) -> Views:
        there = at.select(list(places))
        which, same = np.zeros(len(there), np.int64), np.full(len(there), fov)
        picture = render([case.truth(seed)], which, there.c2w.numpy(), same, config.size, GREY, 3)
        return Views(torch.from_numpy(picture.rgb), there)

    places = tuple(range(len(at)))
    return [
        Scene(f"{k:03d}-{case.caption.replace(' ', '-')}", at, places, (), case.caption, partial(photograph, case))
        for k, case in enumerate(held_out_cases(config.count, seed, spread=True))
    ]


def srn(config: SRNScenesConfig, sampler: Any, seed: int) -> list[Scene]:
    """Reads scenes of an archive, the standard protocol: one view is given, the others are targets."""
    return [_from_archive(config, open_instance(path, config.up, LEAST)) for path in config.folders()]


def _from_archive(config: SRNScenesConfig, instance: Instance) -> Scene:
    instance.verify()
    with within("scenes"):
        given, targets = condition_and_targets(instance, config.condition)
    keep = targets if config.views is None else [targets[k] for k in evenly_spaced(len(targets), config.views - 1)]
    places = sorted([given, *keep])
    at = instance.cameras.select(places)
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
    return [Scene(name, one.cameras, one.numbers) for name, one in sampler.instances.items()]


def fit_to(scene: Scene, images: torch.Tensor) -> torch.Tensor:
    """Brings a sampler's pictures (N, h, w, 3) to 8-bit values in [0, 1] and the scene's size, as a file would."""
    size = (scene.cameras.height, scene.cameras.width)
    if tuple(images.shape[1:3]) != size:
        images = resize(images, *size)
    return torch.from_numpy(to_uint8(images)).float() / 255


def held_out_places(scene: Scene, share: float, seed: int) -> list[int]:
    """Draws the places of the held-out views: 25 of 251 for 10 %. The same for all scenes with as many views, and for
    all samplers; never a view that was given. Raises ConfigError if nothing is left."""
    count = len(scene.cameras)
    free = scene.targets
    number = max(1, round(share * count))
    if number > len(free) - 1 or count - number < 2:
        raise ConfigError(f"{scene.name} has {count} views, too few to hold out {number} and fit a field to the others")
    rng = numpy_generator(seed, count, "held-out views")
    return sorted(int(k) for k in rng.choice(free, number, replace=False))


def prompt_warnings(scene: Scene) -> list[str]:
    """Says what makes a score doubtful: cameras that look away from what they stand around, or around another point."""
    at = scene.cameras
    if around_origin(at):
        return []
    if around_origin(replace(at, c2w=opencv_axes(opencv_axes(at.c2w).inverse()))):  # in the axes that files have
        doubt = (
            "the cameras would look at the origin if the poses were world-to-camera: are they? Then invert them, or "
            "say so by a 1 in a fifth line of intrinsics.txt"
        )
    elif _behind(at):
        doubt = (
            "the cameras look away from what they stand around: are their axes OpenGL's? Negate the second and the "
            "third column of the poses"
        )
    else:
        where = ", ".join(f"{x:.3g}" for x in looked_at(at).tolist())
        doubt = f"the cameras look at ({where}), but the field is fitted around the origin"
    note = f"{scene.name}: {doubt}"
    logger.warning("%s", note)
    return [note]


def around_origin(cameras: Cameras) -> bool:
    """Is the point that the cameras look at near the origin, and before most of them?"""
    far = ASIDE * float(cameras.position.norm(dim=-1).median())
    return not _behind(cameras) and float(looked_at(cameras).norm()) <= far


def _behind(cameras: Cameras) -> bool:
    """Have most cameras the point that they look at behind them?"""
    depth = ((cameras.position - looked_at(cameras)) * cameras.c2w[:, :3, 2]).sum(-1)
    return bool((depth < 0).float().mean() > 0.5)


def looked_at(cameras: Cameras) -> torch.Tensor:
    """Finds the point (3,) nearest to all viewing axes; of parallel axes the one nearest to the origin too."""
    axis = -cameras.c2w[:, :3, 2].double()
    across = torch.eye(3, dtype=torch.float64) - axis[:, :, None] * axis[:, None, :]
    A, b = across.sum(0), (across @ cameras.position.double()[..., None]).sum(0)
    return (torch.linalg.pinv(A, rtol=1e-6) @ b)[:, 0].float()
