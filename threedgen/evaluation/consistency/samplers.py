"""Novel-view samplers that use a multi-view prior, and a sampler that reads existing views from a folder.

A sampler is a `threedgen.geometry.views.NovelViewSampler`: it maps requests to images (V, H, W, 3) in [0, 1]. The
registry builds it from its config (kind "sampler"). It may set three flags:

    needs_text, needs_condition    scenes without a prompt or without a condition view are rejected before any sampling
    on_disk                        its views are files of the user, so they are not copied into the run folder
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError, config_hash, registry
from threedgen.data.srn.reader import Instance, open_instance
from threedgen.geometry.foreground import extract_foreground
from threedgen.geometry.views import Request
from threedgen.guidance.prior import Prior
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.priors.mvadapter.pictures import framed
from threedgen.run.cache import digest
from threedgen.run.seeding import generator
from threedgen.train.task import device

from .options import MIN_VIEWS, FolderSamplerConfig, MVAdapterSamplerConfig, MVDreamSamplerConfig

SAME_POSE = 1e-3
"""Tolerance for equal poses: maximum difference of a matrix entry, divided by the camera distance (at least 1)."""


class GroupSampler:
    """Base class of samplers that use a diffusion prior. The prior denoises at most ``together`` views at a time."""

    needs_text, on_disk = False, False
    config: MVDreamSamplerConfig | MVAdapterSamplerConfig
    prior: Prior

    def __init__(self, config: MVDreamSamplerConfig | MVAdapterSamplerConfig) -> None:
        self.config = config
        self.prior = registry.build("prior", config.prior, device())

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        return [self._sample(request) for request in requests]

    def fingerprint(self) -> str:
        """Return a text with everything that determines the samples of a request: weights and options."""
        return f"{digest(self.prior.networks)} {config_hash(self.config)}"

    def sample_group(self, request: Request, c2w: Tensor, rng: torch.Generator) -> Tensor:
        """Sample the views at camera-to-world poses ``c2w`` (V, 4, 4) together; images (V, H, W, 3) in [0, 1]."""
        raise NotImplementedError

    def _sample(self, request: Request) -> Tensor:
        """Sample all target views. Views that are sampled together are evenly spaced, such as every fifth of 60."""
        count, views = len(request.target), []
        groups = -(-count // (self.config.together or count))
        for first in range(groups):
            rng = generator(request.seed, first, f"novel views of {request.scene}")
            views.append(self.sample_group(request, request.target.c2w[first::groups], rng))
        order = torch.cat([torch.arange(first, count, groups) for first in range(groups)])
        return torch.cat(views)[order.argsort()]


class MVDreamSampler(GroupSampler):
    """Sampler that uses an MVDream prior, which is conditioned on the prompt and the cameras."""

    needs_text = True
    config: MVDreamSamplerConfig

    def sample_group(self, request: Request, c2w: Tensor, rng: torch.Generator) -> Tensor:
        c = self.config
        return self.prior.sample(request.text, c2w, c.steps, c.guidance_scale, c.negative_prompt, rng)


class MVAdapterSampler(GroupSampler):
    """Sampler that uses a 2D model with MV-Adapter. It is conditioned on the first condition view, or else on text.

    The adapter receives the directions of the cameras, but not their distances or fields of view. It chooses the size
    and place of the object, and puts its front at azimuth 0.
    """

    config: MVAdapterSamplerConfig
    prior: MVAdapter
    noted = False

    def sample_group(self, request: Request, c2w: Tensor, rng: torch.Generator) -> Tensor:
        c, model = self.config, self.prior
        if not self.noted:
            self.noted = True
            model.note_views(request.target.c2w)
        image = None if request.condition is None else self._condition(request)
        text = request.text or ("" if image is None else c.image_prompt)
        return model.sample_views(
            text,
            model.camera(c2w),
            image,
            steps=c.steps,
            guidance_scale=c.guidance_scale,
            negative_prompt=c.negative_prompt,
            generator=rng,
            init=None if image is not None else model.init_latents(text, c2w),
        )

    def _condition(self, request: Request) -> Tensor:
        """Cut out and centre the object of the first condition view. Raises ConfigError if the background varies."""
        assert request.condition is not None
        rgb, size = request.condition.images[0].float().cpu().numpy(), self.prior.image_size
        opaque = np.ones((*rgb.shape[:2], 1), np.float32)
        cut = extract_foreground(np.dstack([rgb, opaque]), f"the given view of {request.scene}")
        return framed(torch.from_numpy(cut), size, size)


class FolderSampler:
    """Sampler that reads existing views from a folder.

    The constructor checks everything except the pixels, and raises ConfigError.
    """

    needs_text, on_disk = False, True

    def __init__(self, config: FolderSamplerConfig) -> None:
        self.folder = Path(config.path).expanduser()
        self.instances = {
            path.name: open_instance(path, config.up, MIN_VIEWS, allow_gaps=True) for path in config.folders()
        }
        for instance in self.instances.values():
            instance.verify()

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        return [self.instance(request).views(self.indices(request)).images for request in requests]

    def instance(self, request: Request) -> Instance:
        """Return the opened folder of the scene of a request. Raises ConfigError if it is missing."""
        if request.scene not in self.instances:
            raise ConfigError(f"{self.folder / request.scene} is missing. The scenes to score include it.")
        return self.instances[request.scene]

    def indices(self, request: Request) -> list[int]:
        """Return the indices of the requested views. Raises ConfigError if a view is missing or its pose differs."""
        instance = self.instance(request)
        index = {number: k for k, number in enumerate(instance.numbers)}
        for k, number in enumerate(request.numbers):
            if number not in index:
                raise ConfigError(f"{instance.folder / 'rgb' / f'{number:06d}.png'} is missing. It is a target view.")
            own, requested = instance.cameras.c2w[index[number]], request.target.c2w[k]
            if (own - requested).abs().max() > SAME_POSE * max(1.0, float(requested[:3, 3].norm())):
                path = instance.folder / "pose" / f"{instance.names[index[number]]}.txt"
                raise ConfigError(f"{path} differs from the pose of the original view.")
        return [index[number] for number in request.numbers]

    def fingerprint(self) -> str:
        """Return the path of the folder. The pixels are hashed later, in the key of each score."""
        return str(self.folder)
