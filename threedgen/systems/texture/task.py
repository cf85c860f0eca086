"""The task "texture": projects sampled or given images onto the mesh of an object or a scene.

The modules ``sides`` (objects) and ``scene`` list the files of a run.
"""

from pathlib import Path

from threedgen.train.task import Task, run_task

from . import scene, sides
from .options import PathConfig, TextureConfig


def texture(task: Task) -> None:
    """Texture the mesh of the config: a scene if the rig is a camera path, else an object."""
    rig = task.config.rig
    if isinstance(rig, PathConfig):
        scene.texture_scene(task, rig)
    else:
        sides.texture_sides(task, rig)


def run(config: TextureConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task, print the path of its main result, and return the exit code.

    The main result is the textured mesh. If none is made, it is the video of a scene or the preview of an object.
    """
    if config.rig.name == "path":
        result, files = scene.FILM if config.mesh is None else scene.GLB, scene.FILES
    else:
        bare = config.views is None and not config.samples
        result, files = sides.PREVIEW if bare else sides.GLB, sides.FILES
    return run_task(texture, config, resume, quiet, result=result, files=files)
