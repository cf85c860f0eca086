"""The task "texture-object": pictures of a thing's six sides, given or drawn -> its mesh, textured.

RUN/preview.png     the bare mesh from its six sides: what is taken as the front, and as above
RUN/maps/           position/SIDE.png and normal/SIDE.png, what a model is told of the mesh, in MV-Adapter's world
RUN/views/          SIDE.png, the sides as they were drawn, if they were
RUN/views.png       the pictures of the sides, drawn or given
RUN/textured.glb    the textured mesh, where and as large as it was in its file
RUN/texture.png     its texture
RUN/before.png      the mesh without its texture, from all around
RUN/after.png       the same with it
RUN/report.html     a page with all of this
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import radians
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threedgen.export.files.check import Expected, Finding, check_glb
from threedgen.export.files.glb import textured_glb_bytes
from threedgen.export.surface.blend import OBJECT
from threedgen.export.surface.complete import diffuse
from threedgen.export.surface.from_views import Completion, ViewTexture, render, texture_from_views
from threedgen.geometry.images import grid, png, psnr, to_uint8, write_png
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import resize
from threedgen.guidance.mvadapter.model import MVAdapter
from threedgen.run.arrays import Array
from threedgen.run.folder import write_atomic, writing
from threedgen.run.progress import Count
from threedgen.train.task import Task, run_task
from threedgen.viewer.textured import write_page

from .drawing import draw, write_views
from .mesh import SIDES, Thing, bare, control_maps, preview, read_thing, six_sides
from .options import TextureObjectConfig
from .views import read_sides

logger = logging.getLogger(__name__)

GLB, PREVIEW, VIEWS = "textured.glb", "preview.png", "views.png"
BEFORE, AFTER, PAGE = "before.png", "after.png", "report.html"
FILES = (PREVIEW, VIEWS, GLB, "texture.png", BEFORE, AFTER, PAGE)
ROWS = (
    ("Before and after", "from all around, above the horizon and below it", ((BEFORE, "Before"), (AFTER, "After"))),
    ("Sides", "the mesh, and what was drawn or given for it", ((PREVIEW, "Mesh"), (VIEWS, "Pictures"))),
    ("Texture", "what of it no picture shows was completed", (("texture.png", "Texture"),)),
)
AROUND, SHOWN = 6, 256
"""Cameras above the horizon, and as many below, of before.png and after.png; pixels of a picture in a sheet."""
LARGE = 512
"""Pixels of a side from which on it has some to spare beside edges."""


@dataclass(frozen=True)
class Textured:
    """What became of a thing: its texture, the file's bytes, what the checker says of it, and how well the mesh shows
    the pictures again where they are believed, in dB."""

    texture: ViewTexture
    glb: bytes
    findings: tuple[Finding, ...]
    psnr: float


def texture_object(task: Task) -> None:
    """Textures the mesh; writes what stands at the top of this module, and summary.json."""
    config: TextureObjectConfig = task.config
    given = None if config.views is None else read_sides(Path(config.views).expanduser())
    thing = read_thing(config)
    for note in thing.notes:
        logger.warning("%s", note)
    maps = control_maps(thing.mesh, six_sides(config.size))
    with writing(task.folder):
        write_png(task.folder / PREVIEW, grid(preview(thing.mesh, SHOWN), 3, SIDES))
        write_maps(task.folder / "maps", maps)
        sides = drawn_sides(task, maps) if given is None else Sides(*given)
        figures: dict[str, Any] = {"triangles": len(thing.mesh.faces), "notes": [*thing.notes, *sides.notes]}
        if sides.views is not None:
            with Count("texturing", 12, task.quiet) as count:
                done = textured(thing, sides, config, lambda: count.add(1))
            figures |= write_textured(task, thing, sides, done, figures["notes"])
        task.summarise(files=sides.files, **figures)


@dataclass(frozen=True)
class Sides:
    """Pictures of the sides (6,H,H,3) in [0,1], if there are any; where they show the thing (6,H,H), None: wherever
    it is; what is to be said of them, and the files that were written."""

    views: Array | None = None
    masks: Array | None = None
    notes: Sequence[str] = ()
    files: Sequence[str] = ()


def drawn_sides(task: Task, maps: Array) -> Sides:
    """Those that are drawn as the ``maps`` (6,H,H,6) of the mesh have it, if any. Raises ConfigError, OSError."""
    config: TextureObjectConfig = task.config
    if not config.draws:
        return Sides()
    model: MVAdapter = task.load_prior()
    views, notes = draw(task, model, six_sides(config.size), torch.from_numpy(maps).permute(0, 3, 1, 2))
    return Sides(views.numpy(), notes=notes, files=write_views(task.folder, views, SIDES))


def write_maps(folder: Path, maps: Array) -> None:
    """The maps (6,H,W,6) of the sides, as pictures. Raises OSError."""
    for side, both in zip(SIDES, maps, strict=True):
        write_png(folder / "position" / f"{side}.png", both[..., :3])
        write_png(folder / "normal" / f"{side}.png", both[..., 3:])


def textured(
    thing: Thing,
    sides: Sides,
    config: TextureObjectConfig,
    on_view: Callable[[], None] = lambda: None,
    complete: Completion = diffuse,
) -> Textured:
    """The thing as pictures of its sides show it; ``complete`` gives colours to what none shows. Raises ConfigError if
    none shows any of it."""
    views, masks = sides.views, sides.masks
    assert views is not None
    at, mesh = six_sides(views.shape[1]), thing.mesh
    trust = replace(OBJECT, margin=OBJECT.margin if at.height >= LARGE else 1)
    made = texture_from_views(mesh, config.texture, at, views, trust, masks=masks, complete=complete, on_view=on_view)
    extras = {"sides": list(SIDES), "triangles": len(mesh.faces), "texels_seen": round(made.share, 4)}
    maps = {"base_colour": png(to_uint8(made.texture))}
    name = Path(str(config.mesh)).stem
    data = textured_glb_bytes(thing.for_file(), maps, name, extras, open_surface=thing.open)
    room = 4 + 6 * (config.texture / 1024) ** 2 + len(mesh.faces) / 10_000
    found = check_glb(data, Expected(len(mesh.faces), config.texture, None, room, tuple(extras), scene=True))
    return Textured(made, data, tuple(found), seen_psnr(thing, made, views))


def seen_psnr(thing: Thing, made: ViewTexture, views: Array) -> float:
    """How alike the views and pictures of the textured mesh are, in dB, in pixels whose texels a view shows."""
    both = np.concatenate([made.texture, made.seen[..., None]], axis=-1)
    again = render(thing.mesh, both, six_sides(views.shape[1]), supersample=1, background=0.0)
    whole = again[..., 3] > 0.999
    return psnr(views[whole], again[whole, :3]) if whole.any() else 0.0


def write_textured(task: Task, thing: Thing, sides: Sides, done: Textured, notes: Sequence[str]) -> dict[str, Any]:
    """Writes texture, mesh, pictures and page; what summary.json tells of them. Raises OSError."""
    folder, config, texture, pictures = task.folder, task.config, done.texture.texture, sides.views
    assert pictures is not None
    write_atomic(folder / GLB, done.glb)
    write_png(folder / "texture.png", texture)
    rings = [orbit(AROUND, radians(tilt), 2.2, radians(40), SHOWN, SHOWN, radians(30)) for tilt in (30, -30)]
    before = [bare(thing.mesh, at) for at in rings]
    after = [render(thing.mesh, texture, at, background=1.0) for at in rings]
    write_png(folder / BEFORE, grid(np.concatenate(before), AROUND // 2))
    write_png(folder / AFTER, grid(np.concatenate(after), AROUND // 2))
    write_png(folder / VIEWS, grid(resize(torch.from_numpy(pictures), SHOWN, SHOWN), 3, SIDES))
    for finding in done.findings:
        logger.warning("%s: %s", GLB, finding.message)
    seen, alike = round(done.texture.share, 4), round(done.psnr, 2)
    title = config.prompt.strip() or Path(str(config.mesh)).stem
    size = f"{len(thing.mesh.faces):,} triangles · {config.texture} x {config.texture} texels"
    headline = (
        size,
        f"{100 * seen:.0f} % seen by a picture",
        f"{alike:.1f} dB to the pictures where they are believed",
    )
    write_page(folder / PAGE, title, GLB, ROWS, headline, notes)
    return {
        "texels_seen": seen,
        "psnr_of_views": alike,
        "findings": [asdict(finding) for finding in done.findings],
    }


def run(config: TextureObjectConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Carries out a config; says where the mesh is, or without views the preview."""
    result = GLB if config.draws or config.views is not None else PREVIEW
    return run_task(texture_object, config, resume, quiet, result=result, files=FILES)
