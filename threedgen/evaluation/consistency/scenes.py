"""Scenes of the consistency score, and samplers (`threedgen.geometry.views.NovelViewSampler`) of views of the scenes.

The registry builds a sampler from its config (kind "sampler"). A sampler may set three flags:

    needs_text         scenes without a prompt are rejected before any sampling
    needs_condition    scenes without a condition view are rejected before any sampling
    on_disk            views of the sampler are files of the user, so they are not copied into the run folder
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, radians
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError, config_hash, registry
from threedgen.config.errors import key_prefix
from threedgen.data.posed.photos import PosedPhotos
from threedgen.data.srn.scene_files import condition_and_targets
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.image_file import extract_foreground
from threedgen.geometry.images import to_uint8
from threedgen.geometry.views import Request, Views, framed, resize
from threedgen.guidance.prior import Prior
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.representations.fit import Bounds
from threedgen.run.arrays import evenly_spaced
from threedgen.run.cache import digest
from threedgen.run.seeding import generator, numpy_generator
from threedgen.train.task import device

from . import options
from .photos import FolderScene, open_scenes

logger = logging.getLogger(__name__)

HELD_OUT = 0.1  # share of the views of a scene that are held out of the fit of the field
MAX_ANGLE = 15  # maximum angle in degrees between the viewing axes of the cameras and the origin, else a warning
SAME_POSE = 1e-3
"""Maximum difference between entries of two pose matrices that count as equal, in units of max(1, camera distance from
the origin)."""


@dataclass(frozen=True)
class Scene:
    """One scene of V views. A sampler receives the condition views or the prompt, and samples all other views.

    Attributes:
        name: name of the scene, used in file names.
        cameras: V cameras.
        numbers: V view numbers, as in the names of the image files.
        condition: indices of the condition views, whose images a sampler receives.
        text: prompt, or "".
        original: function that returns the original views at a list of indices, from 0 to V - 1; None if there are no
            original views.
        bounds: (radius, near, far) in world units: radius of the ball around the origin that a neural field of the
            scene covers, and distances from a camera to the two ends of its rays; None: computed from the cameras.
        notes: remarks for the user about the cameras of photos.
        origin: point in the world of the files that is the origin of the cameras.
    """

    name: str
    cameras: Cameras
    numbers: tuple[int, ...]
    condition: tuple[int, ...] = ()
    text: str = ""
    original: Callable[[Sequence[int]], Views] | None = None
    bounds: Bounds | None = None
    notes: tuple[str, ...] = ()
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def targets(self) -> list[int]:
        """Indices of the target views, which a sampler makes: all views except the condition views.

        First are the views after the last condition view, in order, then those before it, in reverse order. Without
        condition views, all views are targets, in order.
        """
        start = self.condition[-1] if self.condition else -1
        outward = [*range(start + 1, len(self.cameras)), *reversed(range(max(start, 0)))]
        return [k for k in outward if k not in self.condition]

    def request(self, seed: int, with_images: bool = True) -> Request:
        """Return the input of a sampler for this scene: the views to sample, the prompt, and the condition views.

        Condition views are given to the sampler as images with cameras. The views to sample are all others, the target
        views: the request has their cameras and frame numbers (as in the names of image files), in the order of the
        property `targets`. ``with_images`` False leaves out the condition views, for a check that needs no images.
        ``seed`` determines the noise of the sampler.
        """
        given = self.original(self.condition) if with_images and self.original and self.condition else None
        numbers = tuple(self.numbers[k] for k in self.targets)
        return Request(self.name, given, self.cameras.select(self.targets), numbers, self.text, seed, self.origin)

    def all_views(self, request: Request, sampled: Tensor) -> Views:
        """Return all V views of the scene in the order of its cameras.

        They are the condition views of ``request`` and the N target views ``sampled`` (N, H, W, 3), in [0, 1], which
        have the order of `targets`.
        """
        images = torch.empty(len(self.cameras), *sampled.shape[1:])
        images[self.targets] = sampled
        if request.condition is not None:
            images[list(self.condition)] = request.condition.images
        return Views(images, self.cameras)


def posed(config: options.PosedScenesConfig, _sampler: object, seed: int) -> list[Scene]:
    return [_with_condition(config, scene) for scene in open_scenes(config).values()]


def _with_condition(config: options.PosedScenesConfig, scene: FolderScene) -> Scene:
    instance, size = scene.views, None if isinstance(scene.views, PosedPhotos) else config.size
    with key_prefix("scenes"):
        given, targets = condition_and_targets(instance, config.condition)
    keep = targets if config.views is None else [targets[k] for k in evenly_spaced(len(targets), config.views - 1)]
    chosen = sorted([given, *keep])
    cameras = instance.cameras.select(chosen)
    if size is not None:
        cameras = cameras.with_size(size, size)
    numbers = tuple(instance.numbers[k] for k in chosen)

    def original(indices: Sequence[int]) -> Views:
        return instance.views([chosen[k] for k in indices], size)

    condition = (chosen.index(given),)
    return Scene(instance.name, cameras, numbers, condition, "", original, scene.bounds, scene.notes, scene.origin)


def sampled(config: options.SampledScenesConfig, sampler: object, seed: int) -> list[Scene]:
    assert isinstance(sampler, FolderSampler)
    items = list(sampler.scenes.items())
    chosen = [items[k] for k in evenly_spaced(len(items), config.count or len(items))]
    return [
        Scene(name, one.views.cameras, one.views.numbers, bounds=one.bounds, notes=one.notes, origin=one.origin)
        for name, one in chosen
    ]


def fit_to(scene: Scene, images: Tensor) -> Tensor:
    """Resize samples (N, h, w, 3) in [0, 1] to the image size of a scene, and round them to multiples of 1 / 255.

    Return images (N, H, W, 3), float32.
    """
    size = (scene.cameras.height, scene.cameras.width)
    if tuple(images.shape[1:3]) != size:
        images = resize(images, *size)
    return torch.from_numpy(to_uint8(images)).float() / 255


def held_out_views(scene: Scene, seed: int, share: float = HELD_OUT) -> list[int]:
    """Return the sorted indices of random views to hold out when a field is fitted to the views of a scene.

    About the fraction ``share`` of all views is held out. Only target views, which the sampler makes, are held out,
    never the given condition views. The indices depend only on the seed, the number of views and the condition views,
    so they are equal for all samplers. Raises ConfigError if there are too few views.
    """
    count, targets = len(scene.cameras), scene.targets
    number = max(1, round(share * count))
    if number > len(targets) - 1 or count - number < 2:
        raise ConfigError(f"{scene.name} has too few views to hold out {number}: views={count}")
    rng = numpy_generator(seed, count, "held-out views")
    return sorted(int(k) for k in rng.choice(targets, number, replace=False))


def camera_warnings(scene: Scene) -> list[str]:
    """Return remarks for the user about the cameras of a scene. The first case that applies counts:

    1. `scene.notes` has remarks, such as missing photos: return them.
    2. The cameras do not look at the origin, around which the neural field is fitted (the median angle between viewing
       axis and direction to the origin is above `MAX_ANGLE`, 15 degrees): log and return one warning.
    3. Otherwise: return [].
    """
    if scene.notes:
        return list(scene.notes)
    at = scene.cameras
    cosine = (at.c2w[:, :3, 2] * torch.nn.functional.normalize(at.position, dim=-1)).sum(-1)
    if float(cosine.median()) >= cos(radians(MAX_ANGLE)):
        return []
    note = (
        f"{scene.name}: the cameras do not look at the origin, around which the field is fitted. The poses should be "
        "camera-to-world with OpenCV axes (docs/consistency.md)."
    )
    logger.warning("%s", note)
    return [note]


class GroupSampler:
    """Base class of novel-view samplers that use a diffusion model (prior).

    A call takes a list of requests, one per scene. A request has the cameras of the N target views (views to sample),
    the prompt, the condition views (given images with cameras) and the seed. The call returns one tensor (N, H, W, 3)
    of images per request.

    The target views are divided into groups of at most ``config.together`` views (0: one group). With G groups, group k
    has the target views k, k + G, k + 2 G, ... The views of a group are sampled jointly by `sample_group`, which
    subclasses implement.
    """

    needs_text, on_disk = False, False
    config: options.MVDreamSamplerConfig | options.MVAdapterSamplerConfig
    prior: Prior

    def __init__(self, config: options.MVDreamSamplerConfig | options.MVAdapterSamplerConfig) -> None:
        self.config = config
        self.prior = registry.build("prior", config.prior, device())

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        return [self._sample(request) for request in requests]

    def fingerprint(self) -> str:
        return f"{digest(self.prior.networks)} {config_hash(self.config)}"

    def sample_group(self, request: Request, c2w: Tensor, rng: torch.Generator) -> Tensor:
        """Sample M of a scene's target views jointly. Return images (M, H, W, 3) in [0, 1]. Subclasses implement this.

        ``c2w`` (M, 4, 4) are the camera-to-world poses of the M views with OpenGL axes. ``request`` has the prompt and
        the condition views of the scene; its target cameras include other views too. ``rng`` generates the noise.
        """
        raise NotImplementedError

    def _sample(self, request: Request) -> Tensor:
        count, views = len(request.target), []
        groups = -(-count // (self.config.together or count))
        for first in range(groups):
            rng = generator(request.seed, first, f"novel views of {request.scene}")
            views.append(self.sample_group(request, request.target.c2w[first::groups], rng))
        order = torch.cat([torch.arange(first, count, groups) for first in range(groups)])
        return torch.cat(views)[order.argsort()]


class MVDreamSampler(GroupSampler):
    """Novel-view sampler with an MVDream prior (multi-view diffusion), conditioned on the prompt and the cameras.

    A call maps one request (prompt and N target cameras) per scene to images (N, H, W, 3) in [0, 1] per request.
    """

    needs_text = True
    config: options.MVDreamSamplerConfig

    def sample_group(self, request: Request, c2w: Tensor, rng: torch.Generator) -> Tensor:
        c = self.config
        return self.prior.sample(request.text, c2w, c.steps, c.guidance_scale, generator=rng)


class MVAdapterSampler(GroupSampler):
    """Novel-view sampler with a 2D diffusion model and MV-Adapter, conditioned on a condition view and the prompt.

    A call maps one request (prompt, condition views, N target cameras) per scene to images (N, H, W, 3) in [0, 1]. Only
    the first condition view is used; without any, only the prompt. The adapter receives the directions of the cameras,
    but neither distances nor fields of view. The model chooses the size and position of the object, and shows its front
    to cameras at azimuth 0 (in the direction of world +x).
    """

    config: options.MVAdapterSamplerConfig
    prior: MVAdapter

    def sample_group(self, request: Request, c2w: Tensor, rng: torch.Generator) -> Tensor:
        c, model = self.config, self.prior
        image = None if request.condition is None else self._condition(request)
        return model.sample_views(
            request.text,
            model.camera(c2w),
            image,
            steps=c.steps,
            guidance_scale=c.guidance_scale,
            negative_prompt="",
            generator=rng,
            init=None if image is not None else model.init_latents(request.text, c2w, generator=rng),
        )

    def _condition(self, request: Request) -> Tensor:
        assert request.condition is not None
        rgb, size = request.condition.images[0].float().cpu().numpy(), self.prior.image_size
        opaque = np.ones((*rgb.shape[:2], 1), np.float32)
        cut = extract_foreground(np.dstack([rgb, opaque]), f"the given view of {request.scene}")
        return framed(torch.from_numpy(cut), size, size)


class FolderSampler:
    """Sampler that reads existing views of scenes from `config.path`.

    A scene is photos with poses (transforms.json or COLMAP model), or a folder in the layout of the SRN archives (rgb/,
    pose/, intrinsics.txt). A call maps one request per scene to images (N, H, W, 3) in [0, 1] of its N target views.
    The constructor checks all files and raises ConfigError if one of them is missing or unusable.
    """

    needs_text, on_disk = False, True

    def __init__(self, config: options.FolderSamplerConfig) -> None:
        self.folder = Path(config.path).expanduser()
        self.scenes = open_scenes(config)

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        return [self.scenes[request.scene].views.views(self.indices(request)).images for request in requests]

    def indices(self, request: Request) -> list[int]:
        """Return, for each target view of ``request``, its index among the views of the requested scene in the folder.

        A view is found by its number, and among photos by its pose if the number has another one. Raises ConfigError if
        the scene or a view is missing, or if a view has another pose than requested: an entry of its pose matrix, in
        the world of the files, differs by more than 0.001 max(1, d) (`SAME_POSE`), where d is the distance of the
        requested camera from the origin.
        """
        if request.scene not in self.scenes:
            raise ConfigError(f"{self.folder / request.scene} is missing. The scenes to score include it.")
        instance, origin = self.scenes[request.scene].views, self.scenes[request.scene].origin
        own = instance.cameras.c2w.clone()
        own[:, :3, 3] += torch.from_numpy(np.subtract(origin, request.origin)).float()  # float64 for map coordinates
        index, found = {number: k for k, number in enumerate(instance.numbers)}, list[int]()
        for number, requested in zip(request.numbers, request.target.c2w, strict=True):
            error = (own - requested).abs().amax((1, 2)) / max(1.0, float(requested[:3, 3].norm()))
            k = index.get(number)
            if isinstance(instance, PosedPhotos) and (k is None or error[k] > SAME_POSE):
                k = int(error.argmin())  # numbers change with a left-out photo if the names are no numbers
            if k is None:
                raise ConfigError(f"{instance.folder / 'rgb' / f'{number:06d}.png'} is missing. It is a target view.")
            if error[k] > SAME_POSE:
                pose = instance.folder / "pose" / f"{instance.names[k]}.txt"
                path = instance.posed.source if isinstance(instance, PosedPhotos) else pose
                advice = (
                    "Views are compared at equal cameras: those of the original views, or else of the first sampler. "
                    "Score other cameras in a run of their own."
                )
                raise ConfigError(
                    f"{path} does not have the pose of the view to compare with: number={number}. {advice}"
                )
            found.append(k)
        return found

    def fingerprint(self) -> str:
        return str(self.folder)
