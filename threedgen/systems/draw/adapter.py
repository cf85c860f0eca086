"""Sampling of views of an object by MV-Adapter, conditioned on text, an image or the geometry of a mesh.

RUN/views.safetensors has the finished views, so that a resumed run need not sample them again.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import within
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import write_png
from threedgen.guidance.coarse_to_fine import NO_SYNC, ViewSync, check_image_size, total_steps
from threedgen.guidance.priors.mvadapter.cameras import ray_maps
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.priors.mvadapter.pictures import framed
from threedgen.run.cache import cached_tensor
from threedgen.run.prompts import prompt_warnings
from threedgen.run.seeding import generator
from threedgen.train.task import Task

from .options import SamplingConfig

HAS_RAYS = (
    "this adapter has ray control, not the geometry of a mesh. Use one with it, such as toybox-geometry, or a released "
    "one for meshes (tg2mv, ig2mv) with prior.control=geometry prior.layout=rowcol"
)
NEEDS_MESH = "this adapter needs the geometry of a mesh. Give mesh=FILE, or use an adapter with ray control"


def sample_views(
    task: Task,
    model: MVAdapter,
    cameras: Cameras,
    maps: Tensor | None,
    size_keys: tuple[str, str],
    sync: ViewSync = NO_SYNC,
) -> tuple[Tensor, list[str]]:
    """Sample V views of an object, or read them if an interrupted run has sampled them.

    Args:
        cameras: V cameras with images of H x W pixels.
        maps: (V, 6, H, W) in [0, 1], positions and normals of a mesh (`control_maps`); None: ray maps of the cameras.
        size_keys: names of the options for height and width, for errors.
        sync: rounds of img2img after the views are made consistent.

    Returns:
        Images (V, H, W, 3) in [0, 1], and notes on the prompt.

    Raises:
        ConfigError: the adapter does not fit the cameras, the mesh or the image.
        Stopped: after Ctrl-C.
    """
    config: SamplingConfig = task.config
    check_model(model, config, cameras, maps is not None)
    check_image_size((cameras.height, cameras.width), model.unit, model.draft, size_keys)
    notes = prompt_warnings(config.prompt, model, config.prompt_notes()) if config.prompt.strip() else []
    model.note_views(cameras.c2w)
    size, text, cut = (cameras.height, cameras.width), config.object_text(), config.foreground()
    image = None if cut is None else framed(torch.from_numpy(cut), *size)

    def sample() -> Tensor:
        init = model.init_latents(text, cameras.c2w, size) if image is None else None
        with task.track_progress("sampling", total_steps(config.steps, model.draft, sync.rounds, init)) as on_step:
            return model.sample_views(
                text,
                ray_maps(cameras) if maps is None else maps,
                image,
                size,
                steps=config.steps,
                guidance_scale=config.guidance_scale,
                image_scale=config.image_scale,
                negative_prompt=config.negative_prompt,
                generator=generator(config.seed, 0, "views"),
                eta=config.eta,
                on_step=on_step,
                sync=sync,
                init=init,
            )

    return cached_tensor(task.folder / "views.safetensors", "views", (len(cameras), *size, 3), sample), notes


def check_model(model: MVAdapter, config: SamplingConfig, cameras: Cameras, geometry: bool) -> None:
    """Raise ConfigError if the adapter was trained for another condition, set of views or camera projection.

    Args:
        geometry: True if the views are conditioned on the geometry of a mesh, False for camera rays.
    """
    form, problem = None if model.adapted is None else model.adapted.form, ""
    if form is not None and geometry and form.control != "geometry":
        problem = HAS_RAYS
    elif form is not None and not geometry and form.control == "geometry":
        problem = NEEDS_MESH
    elif cameras.projection.parallel and model.fov:
        problem = (
            f"this adapter is for perspective cameras ({model.fov:g} degrees), but meshes are textured by parallel "
        )
        problem += "rays. Use one that was trained with fov=0"
    with within("prior"):
        if problem:
            raise ConfigError(problem, "adapter", config.prior.adapter)
        if config.image is not None:
            model.require_ref()
    if form is not None and form.layout == "rowcol" and len(cameras) != 6:
        raise ConfigError("this adapter samples six sides of a mesh. Leave rig.views out", "rig.views", len(cameras))


def write_views(folder: Path, views: Tensor, names: Sequence[str]) -> list[str]:
    """Write images (V, H, W, 3) in [0, 1] to ``folder``/views/NAME.png; return these paths relative to ``folder``.

    Raises OSError.
    """
    files = [f"views/{name}.png" for name in names]
    for file, view in zip(files, views, strict=True):
        write_png(folder / file, view)
    return files
