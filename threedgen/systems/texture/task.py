"""The task "texture": a scene of known shape -> frames drawn from words -> its mesh, textured.

RUN/frames/         the frames, N.png, key frames first; a run that goes on keeps those that are drawn
RUN/depth/          N.png (``geometry.depth_file``)
RUN/cameras.json    the cameras of the frames (``geometry.cameras_file``), as path=FILE takes them
RUN/frames.mp4, sheet.png   all frames
RUN/scene.glb       the textured mesh, where and as large as it was in its file
RUN/walk/, walk.png views of it that no frame showed
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.export.files.check import Expected, check_glb
from threedgen.export.files.glb import textured_glb_bytes
from threedgen.export.files.textured import TexturedMesh
from threedgen.export.surface.blend import SCENE_BLEND, BlendOptions
from threedgen.export.surface.from_views import render, texture_from_views
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.cameras_file import CAMERAS_FILE, write_cameras
from threedgen.geometry.depth_file import write_depth
from threedgen.geometry.images import enlarge_small, grid, png, to_uint8, write_mp4, write_png
from threedgen.geometry.overlap import check_pose_convention, spread_pairs
from threedgen.geometry.poses import Poses
from threedgen.run.disk import write_atomic, writing
from threedgen.run.progress import Count
from threedgen.run.prompts import prompt_warnings
from threedgen.train.task import Task, run_task

from .drawing import Painter, Pictures, check_model, plan, source
from .options import AUTO, TextureConfig
from .path import around, read_path
from .scannet import read_scannet
from .scene import Coordinates, SceneMesh, read_scene, with_uv
from .shots import Shots, check_overlap, check_seen, choose_keys, depth_of_mesh

logger = logging.getLogger(__name__)

GLB, FILM = "scene.glb", "frames.mp4"
FILES = (FILM, "sheet.png", CAMERAS_FILE, GLB, "texture.png", "walk.png")
SCREENSHOTS, COLUMNS, FPS = 12, 6, 8


def texture(task: Task) -> None:
    """Draws the frames and textures the mesh; writes what stands at the top of this module, and summary.json."""
    config, notes = task.config, list[str]()
    place = Coordinates.of(config.mesh, config.up, config.scale)
    scene = None if config.mesh is None else read_scene(Path(config.mesh).expanduser(), place)
    if scene is not None and (doubt := scene.warning()):
        notes.append(doubt)
    shots = take_shots(config, scene, place, notes)
    keys = list(shots.keys or choose_keys(shots, config.key_overlap))
    notes += check_overlap(shots, keys, config.prior.overlap, "path" if config.scannet is None else "scannet")
    for note in notes:
        logger.warning("%s", note)
    model = task.load_prior().compact()
    check_model(model, config)
    for text in dict.fromkeys(shots.prompts):
        notes += [note for note in prompt_warnings(text, model) if note not in notes]
    mesh, how = (None, "") if scene is None else with_uv(scene, config.texture, config.uv)
    draws = plan(keys, config)
    drawn = sorted({n for draw in draws for n in draw.frames})
    pictures = Pictures(task.folder / "frames", shots, source(shots, keys, task.weights))
    agree = None if mesh is None else partial(on_one_surface, mesh, config.texture, trust(config))
    Painter(model, config, shots, draws, pictures, agree).draw_all(task.quiet)
    frames = pictures.stack(drawn)
    figures: dict[str, Any] = {"frames": len(drawn), "key_frames": len(keys), "draws": len(draws)}
    with writing(task.folder):
        write_frames(task.folder, shots, drawn, keys, frames, place)
        if mesh is not None:
            figures |= {"uv": how} | texture_mesh(task, mesh, place, shots.cameras.select(drawn), frames.numpy(), notes)
        task.summarise(notes=notes, **figures)


def take_shots(config: TextureConfig, scene: SceneMesh | None, place: Coordinates, notes: list[str]) -> Shots:
    """The frames that the config asks for, those that see nothing left out. Raises ConfigError."""
    if config.scannet is not None:
        shots, left_out = read_scannet(config)
        notes += left_out
    elif scene is not None:
        at = around(scene, config) if config.path == AUTO else read_path(config, place)
        prompts = prompts_for(config, len(at))
        kept = list(range(0, len(at), config.every or 1))
        if len(kept) < 2:
            raise ConfigError(
                f"of {len(at)} cameras this leaves {len(kept)}, and two are the least", "every", config.every
            )
        at = at.select(kept)
        if config.path != AUTO:
            some = [kept[n] for n in spread_pairs(len(kept))]

            def read(poses: Poses) -> tuple[Tensor, Cameras]:
                tried = read_path(config.model_copy(update={"poses": poses}), place).select(some)
                return depth_of_mesh(scene, tried), tried

            check_pose_convention(read, config.poses, config.path, "path")
        names = tuple(f"{n:04d}" for n in kept)
        shots = Shots(at, depth_of_mesh(scene, at), tuple(prompts[n] for n in kept), names)
    if not shots.prompts:
        shots = replace(shots, prompts=tuple(prompts_for(config, len(shots))))
    return without_blind(shots, notes)


def prompts_for(config: TextureConfig, count: int) -> list[str]:
    """The prompt of each of ``count`` frames. Raises ConfigError for a wrong number."""
    texts = config.texts() * (count if config.prompts is None else 1)
    if len(texts) != count:
        raise ConfigError(f"{config.prompts!r} has {len(texts)} lines, and there are {count} cameras", "prompts")
    return texts


def without_blind(shots: Shots, notes: list[str]) -> Shots:
    """The shots that see enough of the scene; a note on the others."""
    good = check_seen(shots.depth, shots.names)
    if len(good) == len(shots):
        return shots
    blind = [shots.names[n] for n in range(len(shots)) if n not in set(good)]
    notes.append(f"{len(blind)} of {len(shots)} frames hardly know any depth and were left out: {', '.join(blind[:5])}")
    keys = None if shots.keys is None else tuple(k for k, n in enumerate(good) if n in shots.keys)
    prompts, names = (tuple(part[n] for n in good) for part in (shots.prompts, shots.names))
    return Shots(
        shots.cameras.select(good), shots.depth[good], prompts, names, keys if keys and len(keys) > 1 else None
    )


def write_frames(
    folder: Path, shots: Shots, drawn: list[int], keys: list[int], frames: Tensor, place: Coordinates
) -> None:
    """Cameras, depth, film and sheet of the frames. Raises OSError."""
    at, names = shots.cameras.select(drawn), [shots.names[n] for n in drawn]
    outside = replace(at, c2w=place.poses_back(at.c2w.double()))
    files, prompts = [f"frames/{name}.png" for name in names], [shots.prompts[n] for n in drawn]
    write_cameras(folder / CAMERAS_FILE, outside, files, prompts)
    for name, depth in zip(names, shots.depth[drawn].numpy(), strict=True):
        write_depth(folder / "depth" / f"{name}.png", depth)
    labels = [f"{shots.names[n]}{' key' if n in set(keys) else ''}" for n in drawn]
    write_png(folder / "sheet.png", grid(enlarge_small(frames), COLUMNS, labels))
    write_mp4(enlarge_small(frames), folder / FILM, FPS)


def trust(config: TextureConfig) -> BlendOptions:
    """What of a frame is believed."""
    return replace(SCENE_BLEND, error=config.tolerance)


def on_one_surface(
    mesh: TexturedMesh, size: int, trust: BlendOptions, at: Cameras, frames: Tensor, given: Tensor
) -> Tensor:
    """What cameras see of a mesh that wears their frames (F,H,W,3) as a texture of ``size`` texels; where ``given``
    (F,) ones see it, it is as they have it."""
    made = None
    for which in (~given, given):
        if which.any():
            seen = at.select(which.nonzero()[:, 0].tolist())
            made = texture_from_views(mesh, size, seen, frames[which].numpy(), trust, over=made)
    assert made is not None
    return torch.from_numpy(render(mesh, made.texture, at))


def texture_mesh(
    task: Task, mesh: TexturedMesh, place: Coordinates, at: Cameras, frames: np.ndarray, notes: list[str]
) -> dict[str, Any]:
    """Textures the mesh, writes it, and looks at it from where no frame was. Raises OSError and ConfigError."""
    config: TextureConfig = task.config
    with Count("texturing", 2 * len(at), task.quiet) as count:
        textured = texture_from_views(mesh, config.texture, at, frames, trust(config), on_view=lambda: count.add(1))
    image = to_uint8(textured.texture)
    write_png(task.folder / "texture.png", image)
    extras = {"prompt": config.prompt, "seed": config.seed, "triangles": len(mesh.faces)}
    outside = replace(mesh, vertices=place.for_file(mesh.vertices))
    data = textured_glb_bytes(outside, {"base_colour": png(image)}, "scene", extras, scene=True)
    write_atomic(task.folder / GLB, data)
    room = 4 + 6 * (config.texture / 1024) ** 2
    found = check_glb(data, Expected(len(mesh.faces), config.texture, None, room, tuple(extras), scene=True))
    notes += [finding.message for finding in found]
    for finding in found:
        logger.warning("%s: %s", GLB, finding.message)
    walk = between(at)
    pictures = render(mesh, textured.texture, walk.with_size(2 * walk.height, 2 * walk.width))
    for n, picture in enumerate(pictures):
        write_png(task.folder / "walk" / f"{n:02d}.png", picture)
    write_png(task.folder / "walk.png", grid(pictures, 4))
    return {
        "texels_seen": round(textured.share, 4),
        "psnr_of_views": round(textured.psnr, 2),
        "triangles": len(mesh.faces),
        "findings": [asdict(finding) for finding in found],
    }


def between(at: Cameras) -> Cameras:
    """Cameras half way between some of the given ones and the next."""
    first = np.unique(np.linspace(0, len(at) - 2, min(SCREENSHOTS, len(at) - 1)).round().astype(int))
    c2w = at.c2w[first.tolist()].clone()
    for k, n in enumerate(first):
        pair = at.c2w[n : n + 2].double().numpy()
        c2w[k, :3, :3] = torch.from_numpy(Rotation.from_matrix(pair[:, :3, :3]).mean().as_matrix())
        c2w[k, :3, 3] = torch.from_numpy(pair[:, :3, 3].mean(0))
    return Cameras(c2w, at.select(first.tolist()).projection, at.height, at.width)


def run(config: TextureConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Carries out a config; says where the mesh is, or without one the film."""
    return run_task(texture, config, resume, quiet, result=FILM if config.mesh is None else GLB, files=FILES)
