"""The task "panorama": views all around, drawn together, from text or around a picture that is given.

RUN/views.safetensors keeps the views of a run that was stopped behind their drawing; ``outputs`` has the other files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import radians

import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.cameras_file import CAMERAS_FILE, write_cameras
from threedgen.geometry.images import write_png
from threedgen.geometry.panorama import cameras, intrinsics, render_from_views, ring
from threedgen.guidance.coarse_to_fine import Size, ViewSync, total_steps
from threedgen.guidance.mvdiffusion.model import MVDiffusion
from threedgen.run.cache import cached_tensor
from threedgen.run.disk import writing
from threedgen.run.prompts import prompt_warnings
from threedgen.run.seeding import generator
from threedgen.train.task import Task, run_task

from .given import given_views, read_image
from .options import PanoramaConfig
from .outputs import FILM, PAGE, PICTURE, write_given, write_panorama

logger = logging.getLogger(__name__)


def make(task: Task) -> None:
    """Draws the views and writes what is made of them. Raises ConfigError; Stopped after Ctrl-C."""
    config: PanoramaConfig = task.config
    texts, model = config.texts(), task.load_prior().compact()
    require(model, config)
    notes = list(dict.fromkeys(note for text in dict.fromkeys(texts) for note in prompt_warnings(text, model)))
    if model.extra == "mask" and config.image is None:
        notes.append("no picture is given (image=), so all of it is drawn from the text")
        logger.warning("%s", notes[-1])
    size, fov, R = config.size, radians(config.fov), ring(config.views)
    K, at = intrinsics(fov, size, size), cameras(R, fov, size, size)
    scene = Scene(texts, at, partial(what_is_given, config))
    given, shown = scene.given(size)
    views = cached_tensor(
        task.folder / "views.safetensors", "views", tuple(given.shape), lambda: draw(task, model, scene)
    )
    with writing(task.folder):
        write_given(task.folder / "given", given, shown)
        files = [f"views/{number}.png" for number in range(len(R))]
        for file, view in zip(files, views, strict=True):
            write_png(task.folder / file, view)
        write_cameras(task.folder / CAMERAS_FILE, at, files, texts)
        title = config.prompt.strip() or config.prompts[0]
        degrees = write_panorama(task.folder, views, K, R, config.height, config.film, title)
        share = shown.double().mean().item()
        task.summarise(notes=notes, prompts=texts, height_in_degrees=degrees, given_share=share, files=files)


@dataclass(frozen=True)
class Scene:
    """What is to be drawn: texts and cameras of V views; and what is given of views of any number of pixels."""

    texts: list[str]
    cameras: Cameras
    given: Callable[[int], tuple[Tensor, Tensor]]


def what_is_given(config: PanoramaConfig, size: int) -> tuple[Tensor, Tensor]:
    """Views (V,size,size,3), and which of their pixels the picture that is given shows (V,size,size)."""
    R = ring(config.views)
    if config.image is None or config.image_fov is None:
        return torch.zeros(len(R), size, size, 3), torch.zeros(len(R), size, size, dtype=torch.bool)
    K = intrinsics(radians(config.fov), size, size)
    return given_views(read_image(config.image), radians(config.image_fov), K, R, size)


def require(model: MVDiffusion, config: PanoramaConfig) -> None:
    """Raises ConfigError if a model cannot draw what is asked for."""
    if model.extra == "depth" or (model.multiview is not None and model.multiview.kind != "panorama"):
        raise ConfigError(
            "these draw views of known depth; a panorama needs those of --config mvdiffusion-pano-toybox or "
            "mvdiffusion-pano-sd21",
            "prior.weights",
            config.prior.weights,
        )
    if config.image is not None and model.extra != "mask":
        raise ConfigError(
            "these weights draw from text only; for a panorama around a picture take --config "
            "mvdiffusion-outpaint-toybox or mvdiffusion-outpaint-sd2, or leave image= out",
            "image",
            config.image,
        )
    model.check_trained_options(mask=config.mask)
    model.check_size((config.size, config.size), ("size", "size"))


def draw(task: Task, model: MVDiffusion, scene: Scene) -> Tensor:
    """Samples the views (V,H,W,3) in [0,1]. Raises Stopped after Ctrl-C."""
    config: PanoramaConfig = task.config

    def known(size: Size) -> tuple[Tensor | None, None]:
        return model.masked_extra(*scene.given(size[0]), config.mask) if model.extra == "mask" else None, None

    R, K = ring(config.views), intrinsics(radians(config.fov), config.size, config.size)

    def agree(views: Tensor) -> Tensor:
        seen = render_from_views(views.permute(0, 3, 1, 2), K, R, K, R, config.size, config.size)
        return seen.permute(0, 2, 3, 1)

    with task.track_progress("denoising", total_steps(config.steps, model.draft, config.synchronise)) as on_step:
        return model.sample_views(
            scene.texts,
            model.geometry(scene.cameras, None, config.prior),
            (config.size, config.size),
            known,
            steps=config.steps,
            guidance_scale=config.guidance_scale,
            negative_prompt=config.negative_prompt,
            generator=generator(config.seed, 0, "panorama"),
            on_step=on_step,
            eta=config.eta,
            mask=config.mask,
            sync=ViewSync(config.synchronise, agree),
        )


run = partial(run_task, make, result=PICTURE, files=(PICTURE, FILM, PAGE, CAMERAS_FILE))
