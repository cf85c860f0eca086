"""The task "texture": views, sampled or given, are projected onto the mesh of an object or a scene.

See ``sides`` (objects) and ``scene`` for the files of a run.
"""

from __future__ import annotations

from pathlib import Path

from threedgen.train.task import Task, run_task

from . import scene, sides
from .options import PathConfig, TextureConfig


def texture(task: Task) -> None:
    """Texture the mesh of the config."""
    rig = task.config.rig
    if isinstance(rig, PathConfig):
        scene.texture_scene(task, rig)
    else:
        sides.texture_sides(task, rig)


def run(config: TextureConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task and print the path of the mesh, or without one of the video or preview."""
    if config.rig.name == "path":
        result, files = scene.FILM if config.mesh is None else scene.GLB, scene.FILES
    else:
        bare = config.views is None and not config.samples
        result, files = sides.PREVIEW if bare else sides.GLB, sides.FILES
    return run_task(texture, config, resume, quiet, result=result, files=files)
