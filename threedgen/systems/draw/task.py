"""The task "sample": samples views of an object or a panorama from a prior, without a 3D representation.

RUN/views.png    contact sheet of all views of an object; with rig.name=orbit one row per sample
RUN/views/       with rig.name=angles: N.png, or SIDE.png for the six sides of a mesh. The option ``views`` of the task
                 "texture" takes the folder with the six sides
RUN/preview.png  untextured renders of the six sides of the mesh, if there is a mesh

The module ``panorama`` lists the files of a panorama.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.geometry.images import grid, write_png
from threedgen.guidance.priors.mvadapter.cameras import GEOMETRY_VIEWS, RAY_VIEWS, views
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.priors.pipeline import MVDreamPipeline
from threedgen.run.disk import writing
from threedgen.run.prompts import normalise_prompt, prompt_warnings
from threedgen.run.seeding import generator
from threedgen.train.task import Task, run_task

from . import panorama
from .adapter import sample_views, write_views
from .mesh import SIDES, control_maps, preview, read_object, without_uv
from .options import AnglesConfig, OrbitConfig, SampleConfig

logger = logging.getLogger(__name__)

VIEWS, PREVIEW = "views.png", "preview.png"
MAX_ROW = 8
"""Maximum number of columns in views.png with rig.name=angles."""


def sample_orbit(task: Task, rig: OrbitConfig) -> None:
    """Sample views around an object with MVDream, or single images with Stable Diffusion, and write views.png."""
    config: SampleConfig = task.config
    prior = task.load_prior()
    notes = prompt_warnings(config.prompt, prior, config.prompt_notes())
    pipeline: Any = MVDreamPipeline.from_prior(prior)
    pipeline.set_progress_bar_config(disable=True)
    rows = [
        pipeline(
            config.with_affixes(normalise_prompt(config.prompt)),
            config.negative_prompt,
            rig.n_view,
            rig.elevation,
            rig.azimuth,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance(5.0),
            eta=config.eta,
            generator=generator(config.seed, k, "sample"),
            output_type="np",
        ).images
        for k in range(config.samples)
    ]
    with writing(task.folder):
        write_png(task.folder / VIEWS, grid(np.concatenate(rows), max(1, rig.n_view)))
        task.summarise(notes=notes)


def sample_angles(task: Task, rig: AnglesConfig) -> None:
    """Sample views at given angles with MV-Adapter, and write them. Raises ConfigError, and Stopped after Ctrl-C."""
    config: SampleConfig = task.config
    source = None if config.mesh is None else read_object(config)
    model: MVAdapter = task.load_prior()
    if rig.views is not None:
        angles = [(elevation, azimuth) for azimuth, elevation in rig.views]
    else:
        angles = list(RAY_VIEWS if source is None else GEOMETRY_VIEWS)
    of_sides = source is not None and rig.views is None
    names = SIDES if of_sides else [str(number) for number in range(len(angles))]
    cameras = views(angles, rig.height or model.image_size, rig.width or model.image_size, model.fov)
    mesh = None if source is None else without_uv(source)
    maps = None if mesh is None else control_maps(mesh, cameras)
    with writing(task.folder):
        if mesh is not None:
            write_png(task.folder / PREVIEW, grid(preview(mesh), 3, SIDES))
        samples, notes = sample_views(task, model, cameras, maps, ("rig.height", "rig.width"))
        write_png(task.folder / VIEWS, grid(samples, min(len(samples), MAX_ROW)))
        files = write_views(task.folder, samples, names)
        places = {
            name: {"azimuth": azimuth, "elevation": elevation}
            for name, (elevation, azimuth) in zip(names, angles, strict=True)
        }
        task.summarise(notes=[*(source.notes if source else ()), *notes], views=places, files=files)


def sample(task: Task) -> None:
    """Sample the views of the config's rig (set of cameras), and write the files of the module docstring."""
    rig = task.config.rig
    if isinstance(rig, OrbitConfig):
        sample_orbit(task, rig)
    elif isinstance(rig, AnglesConfig):
        sample_angles(task, rig)
    else:
        panorama.sample(task, rig)


def run(config: SampleConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task, print the path of views.png or panorama.png, and return the exit code."""
    result = panorama.IMAGE if config.rig.name == "panorama" else VIEWS
    return run_task(sample, config, resume, quiet, result=result, files=(VIEWS, PREVIEW, *panorama.FILES))
