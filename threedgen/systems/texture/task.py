"""The task "texture": projects images onto the mesh of a scene (`scene.py`), or of an object from six sides.

The sides are orthographic views that MV-Adapter samples or the user gives, in the order front, right, back, left, top,
bottom. Instead, the user can give photos with poses.

RUN/preview.png     the mesh without texture, to check which sides are the front and the top
RUN/maps/           position/SIDE.png and normal/SIDE.png, the renders that condition MV-Adapter
RUN/views/SIDE.png  sampled sides
RUN/views.png       contact sheet of the sampled or given sides, or of photos
RUN/textured.glb, texture.png            textured mesh, at its place and size in the mesh file, and its texture
RUN/before.png, after.png, report.html   renders without and with the texture, and a page of the results
"""

import logging
from functools import partial
from math import radians
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.data.posed.photos import PosedPhotos
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.shape.topology import area_vectors, pieces, topology, weld
from threedgen.export.surface.from_views import render, texture_from_views
from threedgen.geometry.images import grid, write_png
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import resize
from threedgen.guidance.sampling import ViewSync
from threedgen.run.arrays import evenly_spaced
from threedgen.run.disk import Tree, writing
from threedgen.run.progress import ProgressDisplay
from threedgen.systems.sample import mesh as meshes
from threedgen.systems.sample.adapter import sample_views, write_views
from threedgen.systems.sample.options import SIDES
from threedgen.train.task import Task, run_task
from threedgen.viewer.page import write_textured_page

from . import scene
from .mesh_views import MeshViews, check_sides, place_photos, read_views
from .options import PathConfig, SidesConfig, TextureConfig
from .scene import PREVIEW, TEXTURE, render_consistent, room_warning, with_uv, write_glb

logger = logging.getLogger(__name__)

GLB, VIEWS = "textured.glb", "views.png"
BEFORE, AFTER, PAGE = "before.png", "after.png", "report.html"
FILES: tuple[str, ...] = (PREVIEW, VIEWS, GLB, TEXTURE, BEFORE, AFTER, PAGE)
ROWS = (
    ("Before and after", "from all around, above the horizon and below it", ((BEFORE, "Before"), (AFTER, "After"))),
    ("Sides", "the mesh, and the sampled or given views", ((PREVIEW, "Mesh"), (VIEWS, "Images"))),
    ("Texture", "unseen parts are completed", ((TEXTURE, "Texture"),)),
)
SYNC_TEXELS = 4  # maximum ratio of texture side to image side in the projection that makes the sides consistent
RING_VIEWS, SHEET_SIZE = 6, 256
"""Number of renders from above, and of renders from below, in before.png and after.png; side of a render in pixels."""
SHEET_VIEWS = 12  # maximum number of images in views.png


def texture_sides(task: Task, rig: SidesConfig) -> None:
    """Texture the mesh of an object from six sides or from photos, and write all results to the run folder.

    Without a prompt and images, only preview.png and the position and normal maps of the six sides are written. Raises
    ConfigError if the mesh, the images or the weights cannot be used, and Stopped after Ctrl-C.
    """
    config: TextureConfig = task.config
    found = read_views(config, rig)
    source, mesh, notes = read_mesh(config)
    views, sides = found if isinstance(found, MeshViews) else None, meshes.six_sides(rig.size)
    if isinstance(found, PosedPhotos):
        views, more = place_photos(found, mesh, source.frame)
        notes += more
    else:
        for note in room_warning(mesh.vertices, mesh.faces, sides):
            notes.append(note)
            logger.warning("%s", note)
        if views is not None:
            check_sides(views, mesh, source.frame)
    maps, files = meshes.control_maps(mesh, sides), list[str]()
    with writing(task.folder):
        write_png(task.folder / PREVIEW, grid(meshes.preview(mesh, SHEET_SIZE), 3, SIDES))
        for side, both in zip(SIDES, maps.permute(0, 2, 3, 1), strict=True):
            write_png(task.folder / "maps" / "position" / f"{side}.png", both[..., :3])
            write_png(task.folder / "maps" / "normal" / f"{side}.png", both[..., 3:])
        if config.samples:
            model = task.load_prior(compact=True).compact()

            def synchronise(views: Tensor) -> Tensor:
                texels = min(config.texture, SYNC_TEXELS * rig.size)
                return render_consistent(mesh, texels, MeshViews(views.numpy(), sides).blend, sides, views)

            sync, keys = ViewSync(config.synchronise, synchronise), ("rig.size", "rig.size")
            images, prompt_notes = sample_views(task, model, sides, maps, keys, sync)
            views, files = MeshViews(images.numpy(), sides), write_views(task.folder, images, SIDES)
            notes += prompt_notes
        figures: Tree = {"triangles": len(mesh.faces)}
        if views is not None:
            figures |= texture_mesh(task, source, mesh, views, notes)
        task.summarise(files=files, notes=notes, **figures)


def read_mesh(config: TextureConfig) -> tuple[meshes.SourceMesh, TexturedMesh, list[str]]:
    """Read the mesh of an object, and give it texture coordinates: those of the file if they are usable, else new ones.

    The mesh is transformed to world coordinates, centred and scaled. Returns the transformed mesh with the texture
    coordinates of the file, if any; the same mesh with usable texture coordinates; and notes for the user.

    Raises ConfigError if the file cannot be used, or if texture coordinates cannot be made.
    """
    source = meshes.read_object(config, config.uv)
    mesh, uv = with_uv(source, config.texture, config.uv)
    notes = list(source.notes)
    if source.uv is not None and uv.startswith("new"):
        notes.append(f"the mesh has {uv}")
        logger.warning("%s", notes[-1])
    return source, meshes.with_file_normals(mesh, source), notes


def texture_mesh(task: Task, source: meshes.SourceMesh, mesh: TexturedMesh, views: MeshViews, notes: list[str]) -> Tree:
    """Project images onto a mesh; write the textured mesh, renders and an HTML page. Return metrics for summary.json.

    The metrics are texels_seen (fraction of the texels that an image shows) and psnr_of_views, the PSNR in dB between
    texels and the image pixels that were blended to them; it is high if the images are consistent. Raises OSError if a
    file cannot be written, ConfigError if no image shows the mesh.

    Args:
        source: mesh with its transform from the file to the world, from `read_mesh`.
        mesh: the same mesh with usable texture coordinates, from `read_mesh`.
        views: images and their cameras.
        notes: warnings that the page shows.
    """
    config, folder, triangles = task.config, task.folder, len(mesh.faces)
    at, images, masks = views.cameras, views.images, views.masks
    with ProgressDisplay("texturing", 2 * len(at), task.quiet) as count:
        on_view = partial(count.add, 1)
        made = texture_from_views(mesh, config.texture, at, images, views.blend, masks=masks, on_view=on_view)
    welded, faces, _ = weld(mesh.vertices, mesh.faces)
    volumes = np.bincount(pieces(faces, len(welded)), (area_vectors(welded, faces) * welded[faces[:, 0]]).sum(1))
    # a part with reversed faces has a volume below 0
    double_sided = not topology(welded, faces).manifold or volumes.min() < 0
    name, seen = Path(str(config.mesh)).stem, round(made.share, 4)
    extras = {"sides": list(views.names), "triangles": triangles, "texels_seen": seen}
    in_file = source.frame.for_file(mesh)
    write_glb(task, in_file, made.texture, GLB, name, extras, double_sided=double_sided)
    size = (SHEET_SIZE, SHEET_SIZE)
    rings = [orbit(RING_VIEWS, radians(tilt), 2.2, radians(40), *size, radians(30)) for tilt in (30, -30)]
    before = [meshes.render_untextured(mesh, cameras) for cameras in rings]
    after = [render(mesh, made.texture, cameras, background=1.0) for cameras in rings]
    write_png(folder / BEFORE, grid(np.concatenate(before), RING_VIEWS // 2))
    write_png(folder / AFTER, grid(np.concatenate(after), RING_VIEWS // 2))
    shown = evenly_spaced(len(at), SHEET_VIEWS)
    thumbnails = resize(torch.from_numpy(images[shown]), round(SHEET_SIZE * at.height / at.width), SHEET_SIZE)
    write_png(folder / VIEWS, grid(thumbnails, 3, [views.names[k] for k in shown]))
    headline = (
        f"{triangles:,} triangles · {config.texture} x {config.texture} texels",
        f"{100 * seen:.0f} % of the texels seen in an image",
        f"{made.psnr:.1f} dB between texels and images",
    )
    write_textured_page(folder / PAGE, config.prompt.strip() or name, GLB, ROWS, headline, notes)
    return {"texels_seen": seen, "psnr_of_views": round(made.psnr, 2)}


def run(config: TextureConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task, print the path of its main result, and return the exit code: 0, or for example 130 after Ctrl-C.

    The main result is the textured mesh, with two exceptions. For an object without prompt, image and views it is the
    preview of the mesh. For a scene that is a ScanNet folder without a mesh it is the video of the frames.

    `resume`: run folder to resume; None: a new run. `quiet`: show neither weight files nor progress.
    """
    rig = config.rig
    if isinstance(rig, PathConfig):
        work, files = partial(scene.texture_scene, rig=rig), scene.FILES
        result = scene.GLB if config.mesh or rig.scannet is None else scene.FILM
    else:
        work, files = partial(texture_sides, rig=rig), FILES
        result = PREVIEW if config.views is None and not config.samples else GLB
    return run_task(work, config, resume, quiet, result=result, files=files)
