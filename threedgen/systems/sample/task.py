"""The task "sample": samples views of an object or a panorama from a prior, without a 3D representation.

RUN/views.png    contact sheet of all views of an object; with rig.name=orbit it has one row per sample
RUN/views/       with rig.name=angles: N.png, or SIDE.png for the six sides of a mesh. The option ``views`` of the task
                 "texture" takes the folder with the six sides
RUN/preview.png  untextured renders of the six sides of the mesh, if there is a mesh

The module ``panorama`` lists the files of a panorama.
"""

from math import radians
from pathlib import Path

import torch

from threedgen.geometry.images import grid, write_png
from threedgen.geometry.rigs import orbit
from threedgen.run.disk import writing
from threedgen.run.prompts import normalise_prompt, prompt_warnings
from threedgen.run.seeding import generator
from threedgen.train.task import Task, run_task

from . import panorama
from .adapter import PREVIEW, VIEWS, sample_angles
from .options import AnglesConfig, OrbitConfig, SampleConfig


def sample_orbit(task: Task, rig: OrbitConfig) -> None:
    """Sample views around an object, or single images if `rig.n_view` is 0, and write the contact sheet views.png.

    `rig` has the number of views per object, their elevation and the azimuth of the first view. Views need a multi-view
    prior such as MVDream; single images can also be sampled from a 2D model such as Stable Diffusion.
    """
    config: SampleConfig = task.config
    prior = task.load_prior(compact=True).compact()
    notes = prompt_warnings(config.prompt, prior, config.prompt_notes())
    prompt = config.with_affixes(normalise_prompt(config.prompt))
    c2w = None
    if rig.n_view:
        c2w = orbit(rig.n_view, radians(rig.elevation), 1.0, 1.0, 1, 1, azimuth=radians(rig.azimuth)).c2w
    o, rngs = config, [generator(config.seed, k, "sample") for k in range(config.samples)]
    how = (o.steps, o.guidance(5.0), o.negative_prompt)
    rows = [prior.sample(prompt, c2w, *how, rng, init_strength=1.0, eta=o.eta) for rng in rngs]
    with writing(task.folder):
        write_png(task.folder / VIEWS, grid(torch.cat(rows), max(1, rig.n_view)))
        task.summarise(notes=notes)


def sample(task: Task) -> None:
    """Sample the views of `config.rig` (orbit, angles or panorama), and write the images to the run folder."""
    rig = task.config.rig
    if isinstance(rig, OrbitConfig):
        sample_orbit(task, rig)
    elif isinstance(rig, AnglesConfig):
        sample_angles(task, rig)
    else:
        panorama.sample(task, rig)


def run(config: SampleConfig, resume: Path | None = None, quiet: bool = False) -> int:
    result = panorama.IMAGE if config.rig.name == "panorama" else VIEWS
    return run_task(sample, config, resume, quiet, result=result, files=(VIEWS, PREVIEW, *panorama.FILES))
