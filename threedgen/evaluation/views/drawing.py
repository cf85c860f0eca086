"""Draws the views of scenes from their captions, with and without the attention between views, and keeps them.

RUN/views/attention/00003.safetensors    scene 3, as the views see each other;  RUN/views/base/...   each by itself
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.data.scene_views import SceneViews
from threedgen.evaluation.sampling import read_views, write_views
from threedgen.geometry.images import to_uint8
from threedgen.geometry.views import resize
from threedgen.guidance.coarse_to_fine import Size
from threedgen.guidance.mvdiffusion.inputs import depth_channels
from threedgen.guidance.mvdiffusion.model import MVDiffusion
from threedgen.run.cache import digest
from threedgen.run.seeding import generator
from threedgen.train.task import Task

from .options import EvaluateViewsConfig

ATTENTION, BASE = "attention", "base"


class Drawing:
    """The model of a run. ``given``: it is given view 0. Raises ConfigError for one that cannot draw such scenes."""

    def __init__(self, task: Task, scenes: str, first: SceneViews) -> None:
        """``scenes``: what decides them, in a line; ``first``: one of them."""
        self.config: EvaluateViewsConfig = task.config
        self.folder, self.scenes = task.folder / "views", scenes
        self.model: MVDiffusion = task.load_prior()
        self._check(first)
        self.model.check_trained_options(mask=self.config.mask)
        self.given = self.model.extra == "mask"
        networks = self.model.networks
        alone = {name: network for name, network in networks.items() if name != "multiview"}
        self.weights = {ATTENTION: digest(networks), BASE: digest(alone)}

    def __call__(self, row: str, number: int, scene: SceneViews, on_step: Callable[[], None]) -> Tensor:
        """Draws the views (V,H,W,3), uint8, of scene ``number``, or reads what was drawn before; both rows begin with
        the same noise. ``on_step`` may raise."""
        path, key = self.folder / row / f"{number:05d}.safetensors", self._key(row, number, scene)
        views = read_views(path, key)
        if views is None:
            views = to_uint8(self._draw(row, number, scene, on_step))
            write_views(path, views, key)
        return torch.from_numpy(views)

    def _draw(self, row: str, number: int, scene: SceneViews, on_step: Callable[[], None]) -> Tensor:
        c, model = self.config, self.model
        return model.sample_views(
            scene.captions,
            model.geometry(scene.views.cameras, scene.depth, c.prior) if row == ATTENTION else None,
            size_of(scene),
            lambda size: (self._extra(scene, size), None),
            steps=c.steps,
            guidance_scale=c.guidance_scale,
            negative_prompt=c.negative_prompt,
            generator=generator(c.seed, number, "views of a scene"),
            on_step=on_step,
            eta=c.eta,
            mask=c.mask,
        )

    def _key(self, row: str, number: int, scene: SceneViews) -> dict[str, str]:
        """Tells all that decides how the views look."""
        c, p = self.config, self.config.prior
        between = f"{p.neighbours} {p.k} {p.overlap} {p.guide_views}" if row == ATTENTION else ""
        way = f"{c.steps} {c.eta:g} {c.guidance_scale:g} {c.seed} {p.draft} {p.hold}"
        how = f"{way} {c.mask} {p.dtype} {between} {c.negative_prompt}"
        what = {"scene": f"{number} of {self.scenes}", "captions": "\n".join(scene.captions)}
        return {"weights": self.weights[row], "how": how, **what}

    def _extra(self, scene: SceneViews, size: Size) -> Tensor | None:
        """Encodes what the UNet is told of the scene in pictures of a size, the same in both rows."""
        model = self.model
        if model.extra == "depth" and scene.depth is not None:
            return depth_channels(scene.depth, *(side // model.factor for side in size))
        if model.extra == "mask":
            given = torch.arange(len(scene)) == 0
            return model.masked_extra(resize(scene.views.images, *size), given, self.config.mask)
        return None

    def _check(self, scene: SceneViews) -> None:
        model, name, blocks = self.model, self.config.scenes.name, self.config.prior.blocks
        kind, other, others, fit = (
            ("panorama", "depth", "turn in one place", "toybox-panorama")
            if scene.depth is None
            else ("depth", "mask", "walk, and have depth", "those of train-mvdiffusion variant=depth")
        )
        if model.multiview is None or model.multiview.kind != kind or model.extra == other:
            raise ConfigError(
                f"is for other scenes, for the views of {name} {others}; choose blocks such as {fit}, or other scenes",
                "prior.blocks",
                blocks,
            )
        model.check_size(size_of(scene), ("scenes", "scenes"))


def size_of(scene: SceneViews) -> tuple[int, int]:
    """Gives the height and width of its views in pixels."""
    return scene.views.cameras.height, scene.views.cameras.width
