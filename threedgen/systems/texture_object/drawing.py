"""Views of a thing, drawn by MV-Adapter from words or from a picture.

RUN/views.safetensors keeps them for a run that was stopped behind their drawing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import within
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import write_png
from threedgen.guidance.coarse_to_fine import NO_SYNC, ViewSync, check_image_size, total_steps
from threedgen.guidance.mvadapter.cameras import ray_maps
from threedgen.guidance.mvadapter.model import MVAdapter
from threedgen.guidance.mvadapter.pictures import framed
from threedgen.run.arrays import Array
from threedgen.run.cache import cached_tensor
from threedgen.run.prompts import prompt_warnings
from threedgen.run.seeding import generator
from threedgen.train.task import Task

from .inpainting import Paint
from .options import DrawingConfig, TextureObjectConfig

OF_GEOMETRY = (
    "rays of the cameras, and not the geometry of a mesh",
    "take one that is, as the toybox's toybox-geometry, or a released one for meshes (tg2mv, ig2mv) with "
    "prior.control=geometry prior.layout=rowcol",
)
OF_RAYS = ("the geometry of a mesh, and there is none", "give mesh=FILE, or take one that is told rays of the cameras")
"""What is wrong with an adapter where one of the geometry, or of rays, is wanted, and what to do."""


def draw(
    task: Task, model: MVAdapter, at: Cameras, maps: Tensor | None, synchronised: ViewSync = NO_SYNC
) -> tuple[Tensor, list[str]]:
    """Samples the views (V,H,W,3) in [0,1] that cameras ``at`` see, or takes those of an earlier start; and notes on
    the prompt.

    maps: what the guider is shown of a mesh (V,6,H,W); None: rays of the cameras.  synchronised: see ``in_both_sizes``.
    Raises ConfigError; Stopped after Ctrl-C.
    """
    config: DrawingConfig = task.config
    require(model, config, at, maps is not None)
    notes = prompt_warnings(config.prompt, model, config.prompt_notes()) if config.prompt.strip() else []
    model.note_views(at.c2w)
    cut = config.cut_out()
    picture = None if cut is None else framed(torch.from_numpy(cut), at.height, at.width)
    shape = (len(at), at.height, at.width, 3)

    def sample() -> Tensor:
        control = ray_maps(at) if maps is None else maps
        guess = model.init_latents(config.text(), at.c2w, (at.height, at.width)) if picture is None else None
        steps = total_steps(config.steps, model.draft, synchronised.rounds, guess)
        with task.track_progress("drawing", steps) as on_step:
            return model.sample_views(
                config.text(),
                control,
                picture,
                (at.height, at.width),
                steps=config.steps,
                guidance_scale=config.guidance_scale,
                image_scale=config.image_scale,
                negative_prompt=config.negative_prompt,
                generator=generator(config.seed, 0, "views"),
                eta=config.eta,
                on_step=on_step,
                sync=synchronised,
                init=guess,
            )

    return cached_tensor(task.folder / "views.safetensors", "views", shape, sample), notes


def painter(task: Task, model: MVAdapter) -> Paint:
    """Paints holes of pictures by the 2D model of an adapter, of what the prompt says."""
    config: TextureObjectConfig = task.config
    how: Any = config.complete

    def paint(picture: Array, hole: Array, number: int) -> Array:
        what = f"painting what no side shows, view {number + 1}"
        with task.track_progress(what, how.repeats * config.steps) as on_step:
            painted = model.inpaint(
                config.text(),
                torch.from_numpy(picture),
                torch.from_numpy(hole),
                config.steps,
                how.guidance_scale,
                config.negative_prompt,
                how.repeats,
                generator(config.seed, number, "painting"),
                on_step,
            )
        return painted.numpy()

    return paint


def require(model: MVAdapter, config: DrawingConfig, at: Cameras, geometry: bool) -> None:
    """Raises ConfigError if a model cannot draw what is asked for."""
    adapted = model.adapted
    with within("prior"):
        if adapted is not None and geometry != (adapted.form.control == "geometry"):
            told, remedy = OF_GEOMETRY if geometry else OF_RAYS
            raise ConfigError(f"this one is told {told}; {remedy}", "adapter", config.prior.adapter)
        if config.image is not None:
            model.require_ref()
        if at.projection.parallel and model.fov:
            said = f"this one draws in perspective ({model.fov:g} degrees), and a mesh is textured by parallel rays"
            raise ConfigError(f"{said}; take one that was trained with fov=0", "adapter", config.prior.adapter)
    if adapted is not None and adapted.form.layout == "rowcol" and len(at) != 6:
        raise ConfigError(f"this adapter draws six sides of a mesh, and no {len(at)} views; leave views out", "views")
    check_image_size((at.height, at.width), model.unit, model.draft, config.sides)


def write_views(folder: Path, views: Tensor, names: Sequence[str]) -> list[str]:
    """Writes ``folder``/views/NAME.png; those files, as seen from there. Raises OSError."""
    files = [f"views/{name}.png" for name in names]
    for file, view in zip(files, views, strict=True):
        write_png(folder / file, view)
    return files
