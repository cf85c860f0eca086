"""Scenes of the consistency score: cameras, condition views, original views, held-out views, and camera checks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import within
from threedgen.data.srn.reader import Instance, open_instance
from threedgen.data.srn.scene_files import condition_and_targets
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import to_uint8
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.views import Request, Views, resize
from threedgen.run.arrays import evenly_spaced
from threedgen.run.seeding import numpy_generator

from .options import MIN_VIEWS, SampledScenesConfig, SRNScenesConfig
from .samplers import FolderSampler

logger = logging.getLogger(__name__)

HELD_OUT = 0.1
"""Share of the views of a scene that are held out of the fit of the field."""
MAX_OFFSET = 0.25
"""Maximum distance between the origin and the point that the cameras look at, relative to the camera distance."""


@dataclass(frozen=True)
class Scene:
    """One scene of V views. A sampler receives the condition views or the prompt, and samples all other views.

    Attributes:
        cameras: V cameras.
        numbers: V view numbers, as in the names of the image files.
        condition: indices of the condition views.
        text: prompt, or "".
        original: function that returns the original views at a list of indices; None if there are no original views.
    """

    name: str
    cameras: Cameras
    numbers: tuple[int, ...]
    condition: tuple[int, ...] = ()
    text: str = ""
    original: Callable[[Sequence[int]], Views] | None = None

    @property
    def targets(self) -> list[int]:
        """Indices of the views to sample: those after the last condition view, then those before it, backwards."""
        start = self.condition[-1] if self.condition else -1
        outward = [*range(start + 1, len(self.cameras)), *reversed(range(max(start, 0)))]
        return [k for k in outward if k not in self.condition]

    def request(self, seed: int, with_images: bool = True) -> Request:
        """Return the request for all target views. ``with_images`` includes the condition views, if there are any."""
        given = self.original(self.condition) if with_images and self.original and self.condition else None
        numbers = tuple(self.numbers[k] for k in self.targets)
        return Request(self.name, given, self.cameras.select(self.targets), numbers, self.text, seed)

    def together(self, request: Request, sampled: Tensor) -> Views:
        """Join condition views and sampled target views (N, H, W, 3), in the order of ``cameras``."""
        images = torch.empty(len(self.cameras), *sampled.shape[1:])
        images[self.targets] = sampled
        if request.condition is not None:
            images[list(self.condition)] = request.condition.images
        return Views(images, self.cameras)


def srn(config: SRNScenesConfig, sampler: object, seed: int) -> list[Scene]:
    """Read the scenes of an SRN archive. One view of a scene is the condition, and the others are targets."""
    return [_from_archive(config, open_instance(path, config.up, MIN_VIEWS)) for path in config.folders()]


def _from_archive(config: SRNScenesConfig, instance: Instance) -> Scene:
    instance.verify()
    with within("scenes"):
        given, targets = condition_and_targets(instance, config.condition)
    keep = targets if config.views is None else [targets[k] for k in evenly_spaced(len(targets), config.views - 1)]
    chosen = sorted([given, *keep])
    cameras = instance.cameras.select(chosen)
    if config.size is not None:
        cameras = cameras.with_size(config.size, config.size)
    numbers = tuple(instance.numbers[k] for k in chosen)

    def original(indices: Sequence[int]) -> Views:
        return instance.views([chosen[k] for k in indices], config.size)

    return Scene(instance.name, cameras, numbers, (chosen.index(given),), original=original)


def sampled(config: SampledScenesConfig, sampler: object, seed: int) -> list[Scene]:
    """Return the scenes of a folder of samples. They have no original views and no condition views."""
    if not isinstance(sampler, FolderSampler):
        raise ConfigError("'sampled' needs a folder of samples as sampler", "scenes")
    return [Scene(name, one.cameras, one.numbers) for name, one in sampler.instances.items()]


def fit_to(scene: Scene, images: Tensor) -> Tensor:
    """Resize samples (N, h, w, 3) in [0, 1] to (N, H, W, 3) of the scene, rounded to the 256 values of uint8."""
    size = (scene.cameras.height, scene.cameras.width)
    if tuple(images.shape[1:3]) != size:
        images = resize(images, *size)
    return torch.from_numpy(to_uint8(images)).float() / 255


def held_out_views(scene: Scene, seed: int, share: float = HELD_OUT) -> list[int]:
    """Choose random target views to hold out, and return their sorted indices. Of 251 views, 25 are held out.

    Scenes with the same number of views and the same condition views have the same held-out views, for all samplers.
    Raises ConfigError if the scene has too few views.
    """
    count, targets = len(scene.cameras), scene.targets
    number = max(1, round(share * count))
    if number > len(targets) - 1 or count - number < 2:
        raise ConfigError(f"{scene.name} has too few views to hold out {number}: views={count}")
    rng = numpy_generator(seed, count, "held-out views")
    return sorted(int(k) for k in rng.choice(targets, number, replace=False))


def camera_warnings(scene: Scene) -> list[str]:
    """Return a warning if the cameras look away from the scene or not at the origin; else an empty list."""
    at = scene.cameras
    if around_origin(at):
        return []
    if around_origin(replace(at, c2w=opencv_axes(opencv_axes(at.c2w).inverse()))):  # inverse in the axes of files
        doubt = (
            "the cameras would look at the origin if the poses were world-to-camera. Invert them, or put a 1 in the "
            "fifth line of intrinsics.txt"
        )
    elif _behind(at):
        doubt = (
            "the cameras look away from the scene; their axes may not be OpenGL's. Negate the second and the third "
            "column of the poses"
        )
    else:
        point = ", ".join(f"{x:.3g}" for x in looked_at(at).tolist())
        doubt = f"the cameras look at ({point}), but the field is fitted around the origin"
    note = f"{scene.name}: {doubt}"
    logger.warning("%s", note)
    return [note]


def around_origin(cameras: Cameras) -> bool:
    """Return whether the point that the cameras look at is near the origin and in front of most of them."""
    limit = MAX_OFFSET * float(cameras.position.norm(dim=-1).median())
    return not _behind(cameras) and float(looked_at(cameras).norm()) <= limit


def _behind(cameras: Cameras) -> bool:
    """Return whether the point that the cameras look at is behind most of them."""
    depth = ((cameras.position - looked_at(cameras)) * cameras.c2w[:, :3, 2]).sum(-1)
    return bool((depth < 0).float().mean() > 0.5)


def looked_at(cameras: Cameras) -> Tensor:
    """Return the point (3,) with the least sum of squared distances to all viewing axes, in world units.

    If the axes are parallel, it is the nearest of these points to the origin.
    """
    axis = -cameras.c2w[:, :3, 2].double()
    across = torch.eye(3, dtype=torch.float64) - axis[:, :, None] * axis[:, None, :]
    A, b = across.sum(0), (across @ cameras.position.double()[..., None]).sum(0)
    return (torch.linalg.pinv(A, rtol=1e-6) @ b)[:, 0].float()
