"""Texture of a scene: frames along a camera path are sampled from text and depth, and projected onto the mesh.

RUN/preview.png     the mesh without texture from a few of the cameras, to check its up axis before the sampling
RUN/frames/         sampled frames NAME.png; a resumed run keeps them
RUN/depth/          depth of the frames, NAME.png (format: ``geometry.images.write_depth``)
RUN/cameras.json    cameras of the frames in coordinates of the mesh file; the option rig.file=FILE reads such a file
RUN/frames.mp4, sheet.png   all frames as a video and as a contact sheet
RUN/scene.glb, texture.png  textured mesh, at its place and size in the mesh file, and its texture
RUN/walk/, walk.png renders of the textured mesh from up to 12 cameras, each halfway between two frames, and all in one
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from threedgen.config import ConfigError, registry
from threedgen.export.files.glb import textured_glb_bytes
from threedgen.export.shape.mesh import TexturedMesh, vertex_normals, vertex_tangents
from threedgen.export.shape.topology import area_vectors, degenerate, weld
from threedgen.export.shape.unwrap import UnwrapError, covering_faces, overlap, unwrap
from threedgen.export.surface.blend import SCENE_BLEND, BlendOptions
from threedgen.export.surface.from_views import render, texture_from_views
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.cameras_file import CAMERAS_FILE, write_cameras
from threedgen.geometry.images import enlarge_small, grid, png, to_uint8, write_depth, write_mp4, write_png
from threedgen.geometry.raster import rasterise_views
from threedgen.guidance.options import MIN_OVERLAP
from threedgen.run.arrays import Array, evenly_spaced
from threedgen.run.disk import Tree, write_atomic, writing
from threedgen.run.progress import ProgressDisplay
from threedgen.run.prompts import prompt_warnings
from threedgen.run.text import duration
from threedgen.systems.sample.mesh import MeshFrame, SourceMesh, read_source, render_untextured, without_uv
from threedgen.train.task import Task

from .frames import Frames, check_overlap, choose_keys, read_frames
from .options import PathConfig, TextureConfig
from .windows import WindowSampler, check_model, plan, saved_images, stack

logger = logging.getLogger(__name__)
KEY_OVERLAP = 0.65  # minimum overlap of a key frame with the next
UNWRAP_SECONDS = 1.5e-5  # seconds per triangle to unwrap a mesh on one core

GLB, FILM = "scene.glb", "frames.mp4"
PREVIEW, TEXTURE = "preview.png", "texture.png"
FILES: tuple[str, ...] = (PREVIEW, FILM, "sheet.png", CAMERAS_FILE, GLB, TEXTURE, "walk.png")
MAX_DISTANCE = 1000  # of a scene from the origin, in its size: float32 then rounds to 6e-5 of the size
SCENE_SIZE = (1.0, 100.0)  # plausible range of a scene's longest side in metres; outside it the unit is probably wrong
WALK_VIEWS, SHEET_COLUMNS, FPS = 12, 6, 8
PREVIEW_VIEWS = 4  # in one row, the layout of preview.png of which the gallery shows the first view
BACK_VIEWS, BACK_SIZE = 6, 48  # number and side in pixels of the renders in which back faces are counted
MAX_BACK = 0.25  # maximum fraction of back faces in a room; toy rooms have 0, objects of the toybox 0.32 to 1


def texture_scene(task: Task, rig: PathConfig) -> None:
    """Sample images along a camera path through a scene, project them onto its mesh, and write all results.

    If the config has a ScanNet folder (cameras and depth) but no mesh, the images are only sampled. If it has neither,
    the mesh is that of a toy room made from the prompt. Raises ConfigError if the mesh, the cameras or the weights
    cannot be used, and Stopped after Ctrl-C.
    """
    config: TextureConfig = task.config
    frame = MeshFrame.of(config, config.scale)
    source = None if config.mesh is None else read_source(Path(config.mesh).expanduser(), frame)
    if source is not None:
        check_distance(source)
    describe, notes = None, list[str]()
    if source is None and rig.scannet is None:
        triangles, describe, notes = registry.implementation("room", "toybox")(" ".join(config.texts()), config.seed)
        vertices, faces, _ = weld(triangles.reshape(-1, 3), np.arange(3 * len(triangles)).reshape(-1, 3))
        source = SourceMesh(vertices.astype(np.float32), faces)
    frames, more = read_frames(config, rig, source, frame)
    if describe is not None and config.prompt:
        frames = replace(frames, prompts=tuple(describe(frames.cameras)))
    if config.mesh is not None and source is not None:
        notes += [*size_warning(source), *object_warning(source, frames.cameras)]
    notes += more
    keys = choose_keys(frames, KEY_OVERLAP)
    key = "rig.file" if rig.scannet is None else "rig.scannet"
    notes += check_overlap(frames, keys, MIN_OVERLAP, key)
    for note in notes:
        logger.warning("%s", note)
    if source is not None:
        shown = evenly_spaced(len(frames), PREVIEW_VIEWS)
        with writing(task.folder):
            renders = render_untextured(without_uv(source), frames.cameras.select(shown))
            write_png(task.folder / PREVIEW, grid(renders, PREVIEW_VIEWS, [frames.names[n] for n in shown]))
    model = task.load_prior(compact=True).compact()
    check_model(model, rig)
    for text in dict.fromkeys(frames.prompts):
        notes += [note for note in prompt_warnings(text, model) if note not in notes]
    mesh, uv = (None, "") if source is None else with_uv(source, config.texture, config.uv)
    windows = plan(keys, rig)
    folder, sampled = task.folder / "frames", sorted({n for window in windows for n in window.frames})
    saved = saved_images(folder, frames, keys, task.weights)
    synchronise = None if mesh is None else partial(render_consistent, mesh, config.texture, SCENE_BLEND)
    WindowSampler(config, model, frames, windows, saved, synchronise).sample_all(folder, task.quiet)
    figures: Tree = {"frames": len(sampled), "key_frames": len(keys), "draws": len(windows)}
    with writing(task.folder):
        images = stack(saved, sampled)
        write_frames(task.folder, frames, sampled, keys, images, frame)
        if mesh is not None:
            figures["uv"] = uv
            figures |= texture_mesh(task, mesh, frame, frames.cameras.select(sampled), images.numpy())
        task.summarise(notes=notes, **figures)


def check_distance(source: SourceMesh) -> None:
    """Raise ConfigError if a scene is so far from the origin, for its size, that float32 vertices lose its shape."""
    size, far = float(np.ptp(source.vertices, axis=0).max()), float(np.abs(source.vertices).max())
    if far > MAX_DISTANCE * size:
        place = f"is {size:.4g} m long and {far:.4g} m from the origin, too far for float32 vertices"
        raise ConfigError(f"{place}. Move the mesh, and the cameras if you give any, to the origin", "mesh")


def size_warning(source: SourceMesh) -> list[str]:
    """Return a list with a warning if the longest side of a scene is not 1 to 100 m; else [].

    The unit of the file is then probably not the metre.
    """
    size = float(np.ptp(source.vertices, axis=0).max())
    if SCENE_SIZE[0] <= size <= SCENE_SIZE[1]:
        return []
    return [f"the scene is {size:.4g} m long: if its unit is not the metre, set scale, such as 0.01 for centimetres"]


def object_warning(source: SourceMesh, cameras: Cameras) -> list[str]:
    """Return a list with a warning if many of the surfaces that the cameras see are back faces of the mesh; else [].

    The mesh is then probably an object seen from inside, and no room.
    """
    back = back_fraction(source.vertices, source.faces, cameras.select(evenly_spaced(len(cameras), BACK_VIEWS)))
    if back <= MAX_BACK:
        return []
    text = f"the cameras inside the mesh see {back:.0%} of its surface from behind, as in an object"
    return [f"{text}; if it is one and no room, texture it with texture-toybox"]


def room_warning(vertices: Array, faces: Array, sides: Cameras) -> list[str]:
    """Return a list with a warning if cameras around a mesh see more than half of its surface from behind; else [].

    The mesh is then probably a room without outer walls, and no object.
    """
    back = back_fraction(vertices, faces, sides)
    if back <= 0.5:
        return []
    text = f"the sides see {back:.0%} of the surface from behind, as of a room from outside"
    return [f"{text}; if it is a room, texture it with mvdiffusion-depth-toybox or mvdiffusion-depth-sd2"]


def back_fraction(vertices: Array, faces: Array, cameras: Cameras) -> float:
    """Return the fraction of the pixels with a mesh, in all images of the cameras, that show a face from behind."""
    at = cameras.with_size(BACK_SIZE, BACK_SIZE)
    seen = rasterise_views(vertices, faces, at).face
    view, face = np.nonzero(seen >= 0)[0], seen[seen >= 0]
    rays = -at.c2w[view, :3, 2].numpy()
    if not at.projection.parallel:
        rays = vertices[faces[face, 0]] - at.c2w[view, :3, 3].numpy()
    return float((np.einsum("nc,nc->n", area_vectors(vertices, faces)[face], rays) > 0).mean())


def write_frames(
    folder: Path, frames: Frames, sampled: Sequence[int], keys: Sequence[int], images: Tensor, frame: MeshFrame
) -> None:
    """Write cameras.json, depth/NAME.png, frames.mp4 and a contact sheet (sheet.png) of N sampled frames to `folder`.

    A frame is a camera view of the scene with its depth map and its name NAME. Sampled frames are those with a sampled
    image. The depth maps are 16-bit PNG files in millimetres, 0 for unknown depth. frames.mp4 is a video of the images.
    Raises OSError if a file cannot be written.

    Args:
        frames: all frames.
        sampled: indices in `frames` of the N sampled frames.
        keys: indices in `frames` of the key frames, which were sampled first. The contact sheet marks them.
        images: images (N, H, W, 3) in [0, 1] of the sampled frames, in the order of `sampled`.
        frame: transform from the mesh file to the world (not a view). cameras.json is in coordinates of the mesh file.
    """
    cameras, names = frames.cameras.select(sampled), [frames.names[n] for n in sampled]
    cameras = replace(cameras, c2w=frame.poses_to_file(cameras.c2w.double()))
    files = [f"frames/{name}.png" for name in names]
    write_cameras(folder / CAMERAS_FILE, cameras, files, [frames.prompts[n] for n in sampled])
    for name, n in zip(names, sampled, strict=True):
        write_depth(folder / "depth" / f"{name}.png", frames.depth[n].numpy())
    labels = [f"{frames.names[n]}{' key' if n in set(keys) else ''}" for n in sampled]
    write_png(folder / "sheet.png", grid(enlarge_small(images), SHEET_COLUMNS, labels))
    write_mp4(enlarge_small(images), folder / FILM, FPS)


def texture_mesh(task: Task, mesh: TexturedMesh, frame: MeshFrame, cameras: Cameras, images: np.ndarray) -> Tree:
    """Project images (N, H, W, 3) in [0, 1] of N cameras onto a mesh. Write the textured mesh, and renders of it.

    `mesh` and `cameras` are in world coordinates. `frame` is the transform from the mesh file to the world. The run
    folder gets the textured mesh scene.glb in coordinates of the mesh file, and texture.png. Renders walk/00.png, ...
    show it from up to 12 new cameras, each halfway between two consecutive ones of `cameras`; walk.png has all renders.
    Raises OSError if a file cannot be written, and ConfigError if no image shows the mesh.

    Returns:
        Metrics for summary.json: texels_seen (fraction of the texels that an image shows), triangles (their number),
        and psnr_of_views, the PSNR in dB between texels and the image pixels that were blended to them; it is high if
        the images are consistent.
    """
    config: TextureConfig = task.config
    with ProgressDisplay("texturing", 2 * len(cameras), task.quiet) as count:
        made = texture_from_views(mesh, config.texture, cameras, images, SCENE_BLEND, on_view=lambda: count.add(1))
    extras = {"prompt": config.prompt, "seed": config.seed, "triangles": len(mesh.faces)}
    write_glb(task, frame.for_file(mesh), made.texture, GLB, "scene", extras, scene=True)
    walk = between(cameras)
    renders = render(mesh, made.texture, walk.with_size(2 * walk.height, 2 * walk.width))
    for n, image in enumerate(renders):
        write_png(task.folder / "walk" / f"{n:02d}.png", image)
    write_png(task.folder / "walk.png", grid(renders, 4))
    return {"texels_seen": round(made.share, 4), "psnr_of_views": round(made.psnr, 2), "triangles": len(mesh.faces)}


def between(cameras: Cameras) -> Cameras:
    """Return at most ``WALK_VIEWS`` = 12 cameras, each halfway between two consecutive cameras in `cameras`.

    Position and rotation are means of the pair. Of more than 12 pairs, evenly spread ones are used.
    """
    spread = np.linspace(0, len(cameras) - 2, min(WALK_VIEWS, len(cameras) - 1)).round().astype(int)
    first = np.unique(spread).tolist()
    at = cameras.select(first)
    c2w = at.c2w.clone()
    for k, n in enumerate(first):
        pair = cameras.c2w[n : n + 2].double().numpy()
        c2w[k, :3, :3] = torch.from_numpy(Rotation.from_matrix(pair[:, :3, :3]).mean().as_matrix())
        c2w[k, :3, 3] = torch.from_numpy(pair[:, :3, 3].mean(0))
    return replace(at, c2w=c2w)


MAX_OVERLAP = 1e-3
"""Maximum fraction of covered texels in more than one triangle. Rounding at chart borders causes a few."""
MAX_DEGENERATE = 0.01  # maximum fraction of the surface that has no area in the texture


def with_uv(source: SourceMesh, texture: int, choice: str = "auto") -> tuple[TexturedMesh, str]:
    """Return the mesh with texture coordinates (UV), and a text that tells the user where the coordinates come from.

    `texture` is the side of the texture in texels. `choice` is "own" (coordinates of the file), "unwrap" (new
    coordinates), or "auto" ("own" if the file's are usable, else "unwrap"). Raises ConfigError if `choice` is "own" and
    the file's coordinates are not usable, or if unwrapping fails.
    """
    fault = "" if choice == "unwrap" else uv_fault(source, texture)
    if choice == "own" and fault:
        raise ConfigError(f"the mesh's own cannot be used: {fault}. Take uv=unwrap", "uv")
    if not fault and choice != "unwrap" and source.uv is not None:
        normals = vertex_normals(source.vertices, source.faces)
        tangents = vertex_tangents(source.vertices, source.faces, normals, source.uv)
        faces = source.faces.astype(np.int32)
        return TexturedMesh(source.vertices, faces, normals, source.uv, tangents), "the mesh's own texture coordinates"
    vertices, faces, _ = weld(source.vertices, source.faces)
    seconds = UNWRAP_SECONDS * len(faces)
    if seconds > 10:
        text = "Unwrapping %s triangles takes about %s."
        logger.info(text, f"{len(faces):,}", duration(seconds))
    try:
        mesh, charts = unwrap(vertices, faces, texture)
    except UnwrapError as error:
        raise ConfigError(f"{str(error).partition(';')[0]}. Try {2 * texture}", "texture") from None
    why = f" ({fault})" if fault and source.uv is not None else ""
    return mesh, f"new texture coordinates in {charts} charts{why}"


def uv_fault(source: SourceMesh, texture: int) -> str:
    """Return the reason why the file's texture coordinates cannot be used; "" for usable coordinates.

    Possible reasons: not all parts of the file have coordinates; some are outside of [0, 1]; too much of the surface
    has no area in the texture; too many texels belong to two places of the mesh; no texel belongs to the mesh.
    `texture` is the number of texels per side of the texture.
    """
    if source.uv is None:
        return "it has none, or not for all of its parts"
    if not ((source.uv >= 0) & (source.uv <= 1)).all():  # or not finite
        return "some of them are outside of [0, 1]"
    area = np.linalg.norm(area_vectors(source.vertices, source.faces), axis=1)
    lost = float(area[degenerate(np.pad(source.uv, ((0, 0), (0, 1))), source.faces)].sum() / area.sum())
    if lost > MAX_DEGENERATE:
        return f"{lost:.0%} of the surface has no place in the texture"
    first, last = covering_faces(source.uv, source.faces, texture)
    if (share := overlap(first, last)) > MAX_OVERLAP:
        return f"{share:.0%} of the texels belong to two places of the mesh"
    return "" if (first >= 0).any() else "they have no area"


def render_consistent(
    mesh: TexturedMesh, size: int, options: BlendOptions, cameras: Cameras, images: Tensor, known: Tensor | None = None
) -> Tensor:
    """Make images consistent: project them onto a mesh as a texture, and render the mesh for the same cameras.

    Args:
        size: side of the texture in texels.
        options: rules of the projection, such as the unused margin beside depth edges and the maximum depth error.
        cameras: cameras of the N images.
        images: (N, H, W, 3) in [0, 1].
        known: (N,) bool, True for images with priority: where they show the mesh, the texture comes from them alone.
            None: all images are equal.

    Returns:
        Renders (N, H, W, 3) in [0, 1].
    """
    made = None
    known = torch.zeros(len(images), dtype=torch.bool) if known is None else known
    for chosen in (~known, known):
        if chosen.any():
            at = cameras.select(chosen.nonzero()[:, 0].tolist())
            made = texture_from_views(mesh, size, at, images[chosen].numpy(), options, over=made)
    assert made is not None
    return torch.from_numpy(render(mesh, made.texture, cameras))


def write_glb(
    task: Task, mesh: TexturedMesh, texture: Array, file: str, name: str, extras: dict[str, object], **material: bool
) -> None:
    """Write texture.png, and the textured mesh as a GLB file, to the run folder. Raises OSError if this fails.

    Args:
        texture: (H, W, 3) in [0, 1]; row 0 is at v = 1.
        file: file name of the GLB.
        name, extras: name of the mesh and JSON data, which are stored in the GLB.
        material: scene=True for an unlit, double-sided material; double_sided=True for one that is lit.
    """
    image = to_uint8(texture)
    write_png(task.folder / TEXTURE, image)
    write_atomic(task.folder / file, textured_glb_bytes(mesh, {"base_colour": png(image)}, name, extras, **material))
