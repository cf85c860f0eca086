"""The task "adapter-views": views of a thing from words or a picture, and from its mesh, if there is one.

RUN/views.png    all of them
RUN/views/       N.png; of the six sides of a mesh SIDE.png, as `views=` of the task texture-object takes them
RUN/preview.png  the bare mesh: what is taken as its front, and as above
"""

from __future__ import annotations

import logging
from functools import partial

import torch

from threedgen.export.files.textured import TexturedMesh
from threedgen.geometry.images import grid, write_png
from threedgen.guidance.mvadapter.cameras import GEOMETRY_VIEWS, RAY_VIEWS, views
from threedgen.guidance.mvadapter.model import MVAdapter
from threedgen.run.disk import writing
from threedgen.systems.texture_object.drawing import draw, write_views
from threedgen.systems.texture_object.mesh import SIDES, control_maps, placed, preview, without_uv
from threedgen.train.task import Task, run_task

from .options import AdapterViewsConfig

logger = logging.getLogger(__name__)

RESULT, PREVIEW = "views.png", "preview.png"


def draw_views(task: Task) -> None:
    """Writes what stands at the top of this module, and summary.json. Raises ConfigError; Stopped after Ctrl-C."""
    config: AdapterViewsConfig = task.config
    mesh, notes = read_mesh(config)
    model: MVAdapter = task.load_prior()
    angles, names = sides(config)
    at = views(angles, config.height or model.image_size, config.width or model.image_size, model.fov)
    maps = None if mesh is None else torch.from_numpy(control_maps(mesh, at)).permute(0, 3, 1, 2)
    with writing(task.folder):
        if mesh is not None:
            write_png(task.folder / PREVIEW, grid(preview(mesh), 3, SIDES))
        drawn, more = draw(task, model, at, maps)
        write_png(task.folder / RESULT, grid(drawn, len(drawn) if len(drawn) < 9 else 8))
        files = write_views(task.folder, drawn, names)
        told = {name: {"azimuth": angle[1], "elevation": angle[0]} for name, angle in zip(names, angles, strict=True)}
        task.summarise(notes=[*notes, *more], views=told, files=files)


def read_mesh(config: AdapterViewsConfig) -> tuple[TexturedMesh | None, list[str]]:
    """The mesh, if there is one, and what was done to it, which is logged. Raises ConfigError."""
    if config.mesh is None:
        return None, []
    whole, _, notes = placed(config)
    for note in notes:
        logger.warning("%s", note)
    return without_uv(whole), notes


def sides(config: AdapterViewsConfig) -> tuple[list[tuple[float, float]], list[str]]:
    """(elevation, azimuth) in degrees of the views, and their names."""
    if config.views is None and config.mesh is not None:
        return list(GEOMETRY_VIEWS), list(SIDES)
    asked = RAY_VIEWS if config.views is None else [(elevation, azimuth) for azimuth, elevation in config.views]
    return list(asked), [str(number) for number in range(len(asked))]


run = partial(run_task, draw_views, result=RESULT, files=(RESULT, PREVIEW))
