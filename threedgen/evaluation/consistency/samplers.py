"""Draws novel views without a model of its own: by a multi-view prior, or from a folder on the disk.

A sampler is a `threedgen.geometry.views.NovelViewSampler`, built from its config by the registry's kind "sampler". It
may have ``needs_text`` or ``needs_condition``, which are asked for before anything is drawn, and ``on_disk`` if what it
draws need not be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError, config_hash, registry
from threedgen.data.srn.reader import Instance, open_instance
from threedgen.geometry.foreground import extract_foreground
from threedgen.geometry.views import Request
from threedgen.guidance.mvadapter.model import MVAdapter
from threedgen.guidance.mvadapter.pictures import framed
from threedgen.guidance.prior import Prior
from threedgen.run.cache import digest
from threedgen.run.seeding import generator
from threedgen.train.task import device

from .options import LEAST, FolderSamplerConfig, MVAdapterSamplerConfig, MVDreamSamplerConfig

SAME_POSE = 1e-3


class MVDreamSampler:
    """Draws by the multi-view prior the views of a text, ``together`` at a time, each time from the same words."""

    needs_text, on_disk = True, False
    prior: Prior

    def __init__(self, config: MVDreamSamplerConfig | MVAdapterSamplerConfig) -> None:
        self.config: Any = config
        self.prior = registry.build("prior", config.prior, device())

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        return [self._draw(request) for request in requests]

    def fingerprint(self) -> str:
        return f"{digest(self.prior.networks)} {config_hash(self.config)}"

    def views(self, request: Request, c2w: Tensor, rng: torch.Generator) -> Tensor:
        """Samples the views (V, H, W, 3) from these poses."""
        c, prior = self.config, self.prior
        drawn: Tensor = prior.sample(request.text, c2w, c.steps, c.guidance_scale, c.negative_prompt, rng)
        return drawn

    def _draw(self, request: Request) -> Tensor:
        """Draws evenly spread views together, as the prior was trained: with 12 of 60, every fifth."""
        count, drawn = len(request.target), []
        groups = -(-count // (self.config.together or count))
        for first in range(groups):
            rng = generator(request.seed, first, f"novel views of {request.scene}")
            drawn.append(self.views(request, request.target.c2w[first::groups], rng))
        order = torch.cat([torch.arange(first, count, groups) for first in range(groups)])
        return torch.cat(drawn)[order.argsort()]


class MVAdapterSampler(MVDreamSampler):
    """Draws by a 2D model with an adapter the views of the object in the first of the given pictures, else of a text.

    The adapter is told from where the cameras look, not how far away they are nor how wide; it places the object
    itself, with its front at azimuth 0, wherever the picture was taken.
    """

    needs_text, noted = False, False
    prior: MVAdapter

    def views(self, request: Request, c2w: Tensor, rng: torch.Generator) -> Tensor:
        c, model = self.config, self.prior
        if not self.noted:
            self.noted = True
            model.note_views(request.target.c2w)
        picture = None if request.condition is None else self._picture(request)
        text = request.text or ("" if picture is None else c.image_prompt)
        how: Any = {"steps": c.steps, "guidance_scale": c.guidance_scale, "negative_prompt": c.negative_prompt}
        guess = None if picture is not None else model.init_latents(text, c2w)
        drawn: Tensor = model.sample_views(text, model.camera(c2w), picture, generator=rng, init=guess, **how)
        return drawn

    def _picture(self, request: Request) -> Tensor:
        """Frames the first given view for the adapter. Raises ConfigError if its background is not plain."""
        assert request.condition is not None
        rgb, size = request.condition.images[0].float().cpu().numpy(), self.prior.image_size
        opaque = np.ones((*rgb.shape[:2], 1), np.float32)
        cut = extract_foreground(np.dstack([rgb, opaque]), f"the given view of {request.scene}")
        return framed(torch.from_numpy(cut), size, size)


class FolderSampler:
    """Reads pictures that somebody has drawn already. Everything but their pixels is checked at once."""

    needs_text, on_disk = False, True

    def __init__(self, config: FolderSamplerConfig) -> None:
        self.folder = Path(config.path).expanduser()
        self.instances = {
            path.name: open_instance(path, config.up, LEAST, allow_gaps=True) for path in config.folders()
        }
        for instance in self.instances.values():
            instance.verify()

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        return [self.instance(request).views(self.places(request)).images for request in requests]

    def instance(self, request: Request) -> Instance:
        """Finds the folder of a scene. Raises ConfigError if there is none."""
        if request.scene not in self.instances:
            raise ConfigError(f"{self.folder / request.scene} is missing: the scene is asked for, but was not drawn")
        return self.instances[request.scene]

    def places(self, request: Request) -> list[int]:
        """Finds where the asked views are. Raises ConfigError for one that is missing or drawn from another pose."""
        instance = self.instance(request)
        place = {number: k for k, number in enumerate(instance.numbers)}
        for k, number in enumerate(request.numbers):
            if number not in place:
                raise ConfigError(f"{instance.folder / 'rgb' / f'{number:06d}.png'} is missing: this view is asked for")
            mine, asked = instance.cameras.c2w[place[number]], request.target.c2w[k]
            if (mine - asked).abs().max() > SAME_POSE * max(1.0, float(asked[:3, 3].norm())):
                path = instance.folder / "pose" / f"{instance.names[place[number]]}.txt"
                raise ConfigError(f"{path} is another pose than that of the view which was asked for")
        return [place[number] for number in request.numbers]

    def fingerprint(self) -> str:
        """Of the place alone: the pixels, which are read again, decide whether a score is kept."""
        return str(self.folder)
