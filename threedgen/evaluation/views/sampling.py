"""Sampling of the views of scenes from their captions, with and without attention between views.

RUN/views/attention/00003.safetensors    views of scene 3, sampled with attention between them
RUN/views/base/00003.safetensors         views of scene 3, sampled independently of each other
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.data.scene_views import SceneViews
from threedgen.evaluation.samples import kept_views
from threedgen.geometry.views import resize
from threedgen.guidance.coarse_to_fine import Size
from threedgen.guidance.priors.mvdiffusion.inputs import depth_channels
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.run.cache import digest
from threedgen.run.seeding import generator
from threedgen.train.task import Task

from .options import EvaluateViewsConfig

ATTENTION, BASE = "attention", "base"


class SceneSampler:
    """Sampler of scenes by the MVDiffusion model of a task. It writes the views to the run folder.

    The constructor raises ConfigError if the model does not fit the scenes.

    Args:
        scenes: text with everything that determines the scenes.
        first: first scene, which the model is checked with.

    Attributes:
        given: whether the model receives the true view 0 as a condition.
    """

    def __init__(self, task: Task, scenes: str, first: SceneViews) -> None:
        self.config: EvaluateViewsConfig = task.config
        self.folder, self.scenes = task.folder / "views", scenes
        self.model: MVDiffusion = task.load_prior()
        self._check(first)
        self.model.check_trained_options(mask=self.config.mask)
        self.given = self.model.extra == "mask"
        networks = self.model.networks
        base = {name: network for name, network in networks.items() if name != "multiview"}
        self.weights = {ATTENTION: digest(networks), BASE: digest(base)}

    def __call__(self, row: str, number: int, scene: SceneViews, on_step: Callable[[], None]) -> Tensor:
        """Return sampled views (V, H, W, 3), uint8, of scene ``number``. Both rows start from the same noise."""
        path, sample = (
            self.folder / row / f"{number:05d}.safetensors",
            partial(self._sample, row, number, scene, on_step),
        )
        return torch.from_numpy(kept_views(path, self._metadata(row, number, scene), sample))

    def _sample(self, row: str, number: int, scene: SceneViews, on_step: Callable[[], None]) -> Tensor:
        c, model = self.config, self.model
        return model.sample_views(
            scene.captions,
            model.geometry(scene.views.cameras, scene.depth, c.prior) if row == ATTENTION else None,
            size_of(scene),
            lambda size: (self._extra_channels(scene, size), None),
            steps=c.steps,
            guidance_scale=c.guidance_scale,
            negative_prompt=c.negative_prompt,
            generator=generator(c.seed, number, "views of a scene"),
            on_step=on_step,
            eta=c.eta,
            mask=c.mask,
        )

    def _metadata(self, row: str, number: int, scene: SceneViews) -> dict[str, str]:
        """Return everything that determines the samples, as metadata of their file."""
        c, p = self.config, self.config.prior
        attention = f"{p.neighbours} {p.k} {p.overlap} {p.guide_views}" if row == ATTENTION else ""
        sampling = f"{c.steps} {c.eta:g} {c.guidance_scale:g} {c.seed} {p.draft} {p.hold}"
        return {
            "weights": self.weights[row],
            "how": f"{sampling} {c.mask} {p.dtype} {attention} {c.negative_prompt}",
            "scene": f"{number} of {self.scenes}",
            "captions": "\n".join(scene.captions),
        }

    def _extra_channels(self, scene: SceneViews, size: Size) -> Tensor | None:
        """Return extra UNet input channels that encode the depth or the condition view; None if the model has none."""
        model = self.model
        if model.extra == "depth" and scene.depth is not None:
            return depth_channels(scene.depth, *(side // model.factor for side in size))
        if model.extra == "mask":
            given = torch.arange(len(scene)) == 0
            return model.masked_extra(resize(scene.views.images, *size), given, self.config.mask)
        return None

    def _check(self, scene: SceneViews) -> None:
        model, name, blocks = self.model, self.config.scenes.name, self.config.prior.blocks
        kind, other, example = (
            ("panorama", "depth", "toybox-panorama")
            if scene.depth is None
            else ("depth", "mask", "those of train-mvdiffusion variant=depth")
        )
        if model.multiview is None or model.multiview.kind != kind or model.extra == other:
            raise ConfigError(
                f"does not fit the {kind} scenes {name}. Use blocks such as {example}", "prior.blocks", blocks
            )
        model.check_size(size_of(scene), ("scenes", "scenes"))


def size_of(scene: SceneViews) -> tuple[int, int]:
    """Return height and width of the views of a scene in pixels."""
    return scene.views.cameras.height, scene.views.cameras.width
