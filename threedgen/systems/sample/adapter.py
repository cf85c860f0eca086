"""Sampling of views of an object by MV-Adapter, conditioned on text, an image or the geometry of a mesh."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import key_prefix
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.image_file import read_foreground
from threedgen.geometry.images import grid, write_png
from threedgen.geometry.views import framed
from threedgen.guidance.matte import remover
from threedgen.guidance.priors.mvadapter.inputs import GEOMETRY_VIEWS, RAY_VIEWS, cameras_from_angles, ray_maps
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.sampling import NO_SYNC, ViewSync, check_image_size, total_steps
from threedgen.run.cache import cached_tensor, input_digest
from threedgen.run.disk import writing
from threedgen.run.prompts import prompt_warnings
from threedgen.run.seeding import generator
from threedgen.train.task import Task

from .mesh import control_maps, preview, read_object, without_uv
from .options import SIDES, AnglesConfig, SampleConfig, SamplingConfig

VIEWS, PREVIEW = "views.png", "preview.png"
MAX_ROW = 8  # maximum number of columns in views.png


def sample_angles(task: Task, rig: AnglesConfig) -> None:
    """Sample views of an object with MV-Adapter at the angles in `rig`, and write the images to the run folder.

    If `rig.views` is None, six views are sampled. With a mesh, these are its sides: front, right, back, left, top and
    bottom. Without a mesh, their azimuths are 0, 45, 90, 180, 270 and 315 degrees, and their elevation is 0.

    The files are:

    - views/NAME.png, one per view. NAME is the side, such as "front", for the six sides of a mesh, else the index of
      the view.
    - views.png, a contact sheet of the views
    - preview.png, only with a mesh: renders of its six sides without a texture

    Raises ConfigError if the adapter does not fit the image, the mesh or the views, and Stopped after Ctrl-C.
    """
    config: SampleConfig = task.config
    source = None if config.mesh is None else read_object(config)
    model: MVAdapter = task.load_prior(compact=True).compact()
    if rig.views is not None:
        angles = [(elevation, azimuth) for azimuth, elevation in rig.views]
    else:
        angles = list(RAY_VIEWS if source is None else GEOMETRY_VIEWS)
    of_sides = source is not None and rig.views is None
    names = SIDES if of_sides else [str(number) for number in range(len(angles))]
    cameras = cameras_from_angles(angles, rig.height or model.image_size, rig.width or model.image_size, model.fov)
    mesh = None if source is None else without_uv(source)
    maps = None if mesh is None else control_maps(mesh, cameras)
    with writing(task.folder):
        if mesh is not None:
            write_png(task.folder / PREVIEW, grid(preview(mesh), 3, SIDES))
        samples, notes = sample_views(task, model, cameras, maps, ("rig.height", "rig.width"))
        write_png(task.folder / VIEWS, grid(samples, min(len(samples), MAX_ROW)))
        files = write_views(task.folder, samples, names)
        pairs = zip(names, angles, strict=True)
        places = {name: {"azimuth": azimuth, "elevation": elevation} for name, (elevation, azimuth) in pairs}
        task.summarise(notes=[*(source.notes if source else ()), *notes], views=places, files=files)


def sample_views(
    task: Task, model: MVAdapter, cameras: Cameras, maps: Tensor | None, keys: tuple[str, str], sync: ViewSync = NO_SYNC
) -> tuple[Tensor, list[str]]:
    """Sample V views of an object with MV-Adapter, or read them from views.safetensors in the folder of a resumed run.

    The file is not used if the maps, the image or the weights have changed since.

    Args:
        cameras: V cameras of the views, with the image size H x W.
        maps: (V, 6, H, W) in [0, 1], renders of a mesh on which the views are conditioned. For a surface point p in
            [-0.5, 0.5]^3 with unit normal n, channels 0-2 are p + 0.5, and channels 3-5 are (n + 1) / 2. Before that, p
            and n are converted from world axes (x, y, z) to MV-Adapter's axes (y, -x, z). Pixels without mesh are 0.5.
            None: the views are conditioned on the camera rays.
        keys: names of the options for height and width, for error messages.
        sync: number of img2img rounds after the first pass, and a function from images (V, H, W, 3) in [0, 1] to images
            that are consistent with each other, which is called before each round.

    Returns:
        Images (V, H, W, 3) in [0, 1], and warnings about the prompt.

    Raises:
        ConfigError: the adapter does not fit the condition, the views or the image size.
        Stopped: Ctrl-C was pressed.
    """
    config: SamplingConfig = task.config
    check_model(model, config, cameras, maps is not None)
    size, text = (cameras.height, cameras.width), config.object_text()
    cut = None if config.image is None else read_foreground(config.image, remover(config.matte))
    check_image_size(size, model.size_multiple, model.draft, keys)
    notes = prompt_warnings(config.prompt, model, config.prompt_notes()) if config.prompt.strip() else []
    image = None if cut is None else framed(torch.from_numpy(cut), *size)

    def sample() -> Tensor:
        rng = generator(config.seed, 0, "object")
        init = model.init_latents(text, cameras.c2w, size, rng) if image is None else None
        with task.track_progress("sampling", total_steps(config.steps, model.draft, sync.rounds, init)) as on_step:
            return model.sample_views(
                text,
                ray_maps(cameras) if maps is None else maps,
                image,
                size,
                steps=config.steps,
                guidance_scale=config.guidance_scale,
                negative_prompt=config.negative_prompt,
                generator=generator(config.seed, 0, "views"),
                eta=config.eta,
                on_step=on_step,
                sync=sync,
                init=init,
            )

    inputs = input_digest([tensor for tensor in (maps, image) if tensor is not None], task.weights)
    return cached_tensor(task.folder / "views.safetensors", "views", (len(cameras), *size, 3), sample, inputs), notes


def check_model(model: MVAdapter, config: SamplingConfig, cameras: Cameras, geometry: bool) -> None:
    """Raise ConfigError if the weights of MV-Adapter do not fit the condition, the image or the cameras of a run.

    `geometry` is True for views conditioned on the geometry of a mesh, False for views conditioned on camera rays. Some
    weights do not accept a reference image, and some do not accept orthographic cameras. Weights for the six sides of a
    mesh need six cameras.
    """
    settings, problem = None if model.adapted is None else model.adapted.settings, ""
    if settings is not None and geometry and settings.control != "geometry":
        problem = "this adapter has ray control. Use one for meshes, such as toybox-geometry (docs/mvadapter.md)"
    elif settings is not None and not geometry and settings.control == "geometry":
        problem = "this adapter needs the geometry of a mesh. Give mesh=FILE, or use an adapter with ray control"
    elif cameras.projection.parallel and model.fov:
        problem = f"this adapter is for perspective cameras ({model.fov:g} degrees). Use one trained with fov=0"
    with key_prefix("prior"):
        if problem:
            raise ConfigError(problem, "adapter", config.prior.adapter)
        if config.image is not None:
            model.require_ref()
    if settings is not None and settings.layout == "rowcol" and len(cameras) != 6:
        raise ConfigError("this adapter samples six sides of a mesh. Leave rig.views out", "rig.views", len(cameras))


def write_views(folder: Path, views: Tensor, names: Sequence[str]) -> list[str]:
    """Write images (V, H, W, 3) in [0, 1] to folder/views/NAME.png; return these paths relative to the folder."""
    files = [f"views/{name}.png" for name in names]
    for file, view in zip(files, views, strict=True):
        write_png(folder / file, view)
    return files
