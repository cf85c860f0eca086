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
from torch import Tensor

from threedgen.export.files.check import Expected, Finding, check_glb
from threedgen.export.files.glb import textured_glb_bytes
from threedgen.export.files.textured import TexturedMesh
from threedgen.export.surface.blend import OBJECT_BLEND
from threedgen.export.surface.from_views import ViewTexture, render, texture_from_views
from threedgen.geometry.images import grid, png, to_uint8, write_png
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import resize
from threedgen.guidance.coarse_to_fine import ViewSync
from threedgen.guidance.mvadapter.model import MVAdapter
from threedgen.guidance.mvadapter.pictures import GREY
from threedgen.run.arrays import Array
from threedgen.run.disk import write_atomic, writing
from threedgen.run.progress import Count
from threedgen.train.task import Task, run_task
from threedgen.viewer.textured import write_page

from .drawing import draw, painter, write_views
from .inpainting import inpainted
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
FINE = 4
"""Texels along an edge for each pixel of a side, with which sides are brought to agree."""
AROUND, SHOWN = 6, 256
"""Cameras above the horizon, and as many below, of before.png and after.png; pixels of a picture in a sheet."""
LARGE = 512
"""Pixels of a side from which on it has some to spare beside edges."""


@dataclass(frozen=True)
class Textured:
    """What became of a thing: its texture, the file's bytes, what the checker says of it, which share of the texels a
    side shows, how many views of what none shows were painted, and how alike texels and the sides that are believed
    about them are, in dB."""

    texture: ViewTexture
    glb: bytes
    findings: tuple[Finding, ...]
    seen: float
    painted: int
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
        model: MVAdapter | None = task.load_prior() if config.draws or config.paints else None
        sides = Sides(*given) if given is not None else drawn_sides(task, model, thing, maps) if model else Sides()
        figures: dict[str, Any] = {"triangles": len(thing.mesh.faces), "notes": [*thing.notes, *sides.notes]}
        if sides.views is not None:
            done = textured(task, thing, sides, model if config.paints else None)
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


def drawn_sides(task: Task, model: MVAdapter, thing: Thing, maps: Array) -> Sides:
    """Those that are drawn as the ``maps`` (6,H,H,6) of the thing have it. Raises ConfigError, OSError."""
    config: TextureObjectConfig = task.config
    at, control = six_sides(config.size), torch.from_numpy(maps).permute(0, 3, 1, 2)

    def agree(views: Tensor) -> Tensor:
        made = seen_texture(thing.mesh, Sides(views.numpy()), min(config.texture, FINE * config.size))
        return torch.from_numpy(render(thing.mesh, made.texture, at, background=GREY))

    views, notes = draw(task, model, at, control, ViewSync(config.synchronise, agree))
    return Sides(views.numpy(), notes=notes, files=write_views(task.folder, views, SIDES))


def write_maps(folder: Path, maps: Array) -> None:
    """The maps (6,H,W,6) of the sides, as pictures. Raises OSError."""
    for side, both in zip(SIDES, maps, strict=True):
        write_png(folder / "position" / f"{side}.png", both[..., :3])
        write_png(folder / "normal" / f"{side}.png", both[..., 3:])


def textured(task: Task, thing: Thing, sides: Sides, model: MVAdapter | None = None) -> Textured:
    """The thing as pictures of its sides show it; what none shows is painted by the ``model`` if there is one, and what
    is left gets the colours around it. Raises ConfigError if none shows any of it."""
    config, views = task.config, sides.views
    assert views is not None
    with Count("texturing", 2 * len(SIDES), task.quiet) as count:
        made = seen_texture(thing.mesh, sides, config.texture, lambda: count.add(1))
    whole, painted = made, 0
    if model is not None:
        whole, painted = inpainted(thing.mesh, made, model.image_size, config.complete, painter(task, model))
    data, found = as_file(thing, whole, made.share, config)
    return Textured(whole, data, tuple(found), made.share, painted, made.psnr)


def seen_texture(
    mesh: TexturedMesh, sides: Sides, size: int, on_view: Callable[[], None] = lambda: None
) -> ViewTexture:
    """The texture as the sides show it, the rest as around it; ``on_view``: called twice for each side."""
    assert sides.views is not None
    at = six_sides(sides.views.shape[1])
    trust = replace(OBJECT_BLEND, margin=OBJECT_BLEND.margin if at.height >= LARGE else 1)
    return texture_from_views(mesh, size, at, sides.views, trust, masks=sides.masks, on_view=on_view)


def as_file(thing: Thing, made: ViewTexture, seen: float, config: TextureObjectConfig) -> tuple[bytes, list[Finding]]:
    """The bytes of the textured mesh, and what the checker says of them."""
    triangles = len(thing.mesh.faces)
    extras = {"sides": list(SIDES), "triangles": triangles, "texels_seen": round(seen, 4)}
    maps = {"base_colour": png(to_uint8(made.texture))}
    data = textured_glb_bytes(thing.for_file(), maps, Path(str(config.mesh)).stem, extras, open_surface=thing.open)
    room = 4 + 6 * (config.texture / 1024) ** 2 + triangles / 10_000
    return data, check_glb(data, Expected(triangles, config.texture, None, room, tuple(extras), scene=True))


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
    seen, alike = round(done.seen, 4), round(done.psnr, 2)
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
        "texels_painted": round(done.texture.share - done.seen, 4),
        "views_painted": done.painted,
        "psnr_of_views": alike,
        "findings": [asdict(finding) for finding in done.findings],
    }


def run(config: TextureObjectConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Carries out a config; says where the mesh is, or without views the preview."""
    result = GLB if config.draws or config.views is not None else PREVIEW
    return run_task(texture_object, config, resume, quiet, result=result, files=FILES)
