"""The task "texture": projects images onto the mesh of a scene (`scene.py`), or of an object from six sides.

The sides are orthographic views that MV-Adapter samples or the user gives, in the order of `SIDES`.

RUN/preview.png     the mesh without texture; it shows which sides are taken as front and top
RUN/maps/           position/SIDE.png and normal/SIDE.png, the renders that condition MV-Adapter
RUN/views/SIDE.png  sampled sides
RUN/views.png       contact sheet of the sampled or given sides
RUN/textured.glb, texture.png            textured mesh, at its place and size in the mesh file, and its texture
RUN/before.png, after.png, report.html   renders without and with the texture, and a page of the results
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import radians
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.shape.topology import topology, weld
from threedgen.export.surface.blend import OBJECT_BLEND, BlendOptions
from threedgen.export.surface.from_views import ViewTexture, render, texture_from_views
from threedgen.geometry.images import grid, write_png
from threedgen.geometry.picture_file import load_image
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import resize
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.sampling import ViewSync
from threedgen.run.arrays import Array
from threedgen.run.disk import writing
from threedgen.run.progress import Count
from threedgen.run.seeding import generator
from threedgen.systems.draw.adapter import sample_views, write_views
from threedgen.systems.draw.mesh import (
    SIDES,
    SourceMesh,
    control_maps,
    preview,
    read_object,
    render_untextured,
    six_sides,
    with_file_normals,
)
from threedgen.train.task import Task, run_task
from threedgen.viewer.page import write_textured_page

from . import scene
from .inpaint import Inpaint, inpaint_texture
from .options import PathConfig, SidesConfig, TextureConfig
from .textured import TEXTURE, render_consistent, with_uv, write_glb

logger = logging.getLogger(__name__)

GLB, PREVIEW, VIEWS = "textured.glb", "preview.png", "views.png"
BEFORE, AFTER, PAGE = "before.png", "after.png", "report.html"
FILES: tuple[str, ...] = (PREVIEW, VIEWS, GLB, TEXTURE, BEFORE, AFTER, PAGE)
ROWS = (
    ("Before and after", "from all around, above the horizon and below it", ((BEFORE, "Before"), (AFTER, "After"))),
    ("Sides", "the mesh, and the sampled or given views", ((PREVIEW, "Mesh"), (VIEWS, "Pictures"))),
    ("Texture", "unseen parts are completed", ((TEXTURE, "Texture"),)),
)
SYNC_TEXELS = 4
"""Maximum ratio of texture side to image side in the projection that makes the sides consistent."""
RING_VIEWS, SHEET_SIZE = 6, 256
"""Number of cameras above, and of cameras below the horizon in before.png and after.png; image side in pixels."""
LARGE = 512
"""Minimum image side in pixels at which the projection discards a wide margin beside depth edges."""
INPAINT_SCALE = 7.0
"""Guidance scale of inpainting."""


class Sides(NamedTuple):
    """Images (6, S, S, 3) of an object from the sides ``SIDES``, and object masks (6, S, S); both in [0, 1]."""

    images: Array
    masks: Array | None = None


def texture_sides(task: Task, rig: SidesConfig) -> None:
    """Texture the mesh and write the files of the module docstring. Raises ConfigError, and Stopped after Ctrl-C."""
    config: TextureConfig = task.config
    sides = None if config.views is None else read_sides(Path(config.views).expanduser())
    source, mesh, notes = read_mesh(config)
    maps, files = control_maps(mesh, six_sides(rig.size)), list[str]()
    with writing(task.folder):
        write_png(task.folder / PREVIEW, grid(preview(mesh, SHEET_SIZE), 3, SIDES))
        for side, both in zip(SIDES, maps.permute(0, 2, 3, 1), strict=True):
            write_png(task.folder / "maps" / "position" / f"{side}.png", both[..., :3])
            write_png(task.folder / "maps" / "normal" / f"{side}.png", both[..., 3:])
        model: MVAdapter | None = task.load_prior() if config.samples or config.inpaints else None
        if model is not None and config.samples:
            size = rig.size

            def synchronise(views: Tensor) -> Tensor:
                texels = min(config.texture, SYNC_TEXELS * size)
                return render_consistent(mesh, texels, blend(size), six_sides(size), views)

            sync, keys = ViewSync(config.synchronise, synchronise), ("rig.size", "rig.size")
            images, prompt_notes = sample_views(task, model, six_sides(size), maps, keys, sync)
            sides, files = Sides(images.numpy()), write_views(task.folder, images, SIDES)
            notes += prompt_notes
        figures: dict[str, Any] = {"triangles": len(mesh.faces)}
        if sides is not None:
            figures |= texture_mesh(task, source, mesh, sides, model if config.inpaints else None, notes)
        task.summarise(files=files, notes=notes, **figures)


def read_sides(folder: Path) -> Sides:
    """Read the six images SIDE.png of a folder. Their alpha channels become the masks. Raises ConfigError."""
    images = [np.asarray(load_image(folder / f"{side}.png", key="views").convert("RGBA")) for side in SIDES]
    height, width = images[0].shape[:2]
    if height != width or any(image.shape != images[0].shape for image in images):
        sizes = ", ".join(f"{side} {p.shape[1]} x {p.shape[0]}" for side, p in zip(SIDES, images, strict=True))
        raise ConfigError(f"the images of {folder} should be square and of one size, and are: {sizes}", "views")
    stack = np.stack(images).astype(np.float32) / 255
    if not stack[..., 3].any():
        raise ConfigError(f"the images of {folder} are all transparent", "views")
    return Sides(stack[..., :3], stack[..., 3])


def read_mesh(config: TextureConfig) -> tuple[SourceMesh, TexturedMesh, list[str]]:
    """Return an object's mesh as in the file, the mesh with texture coordinates, and notes. Raises ConfigError."""
    source = read_object(config)
    mesh, uv = with_uv(source, config.texture, config.uv)
    notes = list(source.notes)
    if source.uv is not None and uv.startswith("new"):
        notes.append(f"the mesh has {uv}")
        logger.warning("%s", notes[-1])
    return source, with_file_normals(mesh, source), notes


def inpainter(task: Task, model: MVAdapter) -> Inpaint:
    config: TextureConfig = task.config

    def inpaint(image: Array, hole: Array, number: int) -> Array:
        with task.track_progress(f"inpainting view {number + 1}", config.steps) as on_step:
            painted = model.inpaint(
                config.object_text(),
                torch.from_numpy(image),
                torch.from_numpy(hole),
                config.steps,
                INPAINT_SCALE,
                config.negative_prompt,
                generator=generator(config.seed, number, "painting"),
                on_step=on_step,
            )
        return painted.numpy()

    return inpaint


def blend(size: int) -> BlendOptions:
    return replace(OBJECT_BLEND, margin=OBJECT_BLEND.margin if size >= LARGE else 1)


def project(mesh: TexturedMesh, sides: Sides, size: int, on_view: Callable[[], None] = lambda: None) -> ViewTexture:
    """Project the sides onto the mesh as a texture of `size` x `size` texels; `on_view` is called twice per side.

    Unseen texels get the colours of near surface points. Raises ConfigError if no side shows the mesh.
    """
    side = sides.images.shape[1]
    at, masks = six_sides(side), sides.masks
    return texture_from_views(mesh, size, at, sides.images, blend(side), masks=masks, on_view=on_view)


def texture_mesh(
    task: Task, source: SourceMesh, mesh: TexturedMesh, sides: Sides, model: MVAdapter | None, notes: list[str]
) -> dict[str, object]:
    """Project the sides onto the mesh; write the mesh, renders and a page. Raises OSError, ConfigError.

    `model` inpaints unseen texels. If it is None, they keep the colours of near surface points. Warnings in `notes` are
    shown on the page. Returns metrics for summary.json.
    """
    config, folder, triangles = task.config, task.folder, len(mesh.faces)
    with Count("texturing", 2 * len(SIDES), task.quiet) as count:
        made = project(mesh, sides, config.texture, lambda: count.add(1))
    whole, inpainted = made, 0
    if model is not None:
        inpaint = inpainter(task, model)
        whole, inpainted = inpaint_texture(mesh, made, model.image_size, config.inpaint_views, inpaint)
    welded, faces, _ = weld(mesh.vertices, mesh.faces)
    open_surface = topology(welded, faces).open_edges > 0
    name, seen = Path(str(config.mesh)).stem, round(made.share, 4)
    extras = {"sides": list(SIDES), "triangles": triangles, "texels_seen": seen}
    in_file = source.frame.for_file(mesh)
    write_glb(task, in_file, whole.texture, GLB, name, extras, open_surface=open_surface)
    size = (SHEET_SIZE, SHEET_SIZE)
    rings = [orbit(RING_VIEWS, radians(tilt), 2.2, radians(40), *size, radians(30)) for tilt in (30, -30)]
    before = [render_untextured(mesh, cameras) for cameras in rings]
    after = [render(mesh, whole.texture, cameras, background=1.0) for cameras in rings]
    write_png(folder / BEFORE, grid(np.concatenate(before), RING_VIEWS // 2))
    write_png(folder / AFTER, grid(np.concatenate(after), RING_VIEWS // 2))
    write_png(folder / VIEWS, grid(resize(torch.from_numpy(sides.images), *size), 3, SIDES))
    headline = (
        f"{triangles:,} triangles · {config.texture} x {config.texture} texels",
        f"{100 * seen:.0f} % of the texels seen in an image",
        f"{made.psnr:.1f} dB between texels and images",
    )
    write_textured_page(folder / PAGE, config.prompt.strip() or name, GLB, ROWS, headline, notes)
    return {
        "texels_seen": seen,
        "texels_painted": round(whole.share - made.share, 4),
        "views_painted": inpainted,
        "psnr_of_views": round(made.psnr, 2),
    }


def run(config: TextureConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task, print the path of the mesh (if none is made: video or preview), and return the exit code.

    `resume`: run folder to resume; None: a new run. `quiet`: print nothing else, and show no progress.
    """
    rig = config.rig
    if isinstance(rig, PathConfig):
        work, files = partial(scene.texture_scene, rig=rig), scene.FILES
        result = scene.FILM if config.mesh is None else scene.GLB
    else:
        work, files = partial(texture_sides, rig=rig), FILES
        result = PREVIEW if config.views is None and not config.samples else GLB
    return run_task(work, config, resume, quiet, result=result, files=files)
