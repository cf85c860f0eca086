"""The task "image-to-3d": a picture -> views around its object, sampled one from another -> a field -> a mesh.

RUN/sampled.png         the picture as the model sees it, then the sampled views, ring by ring
RUN/views.safetensors   the same, kept for a run that goes on
RUN/turntable.mp4, views.png, mesh.glb, asset, report.html   of the field, as after a prompt

The object is around the origin of the sampled cameras; the mesh is in radii of the field, half the cameras' distance.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from threedgen.config import ConfigError, config_hash
from threedgen.export.asset import ExportedAsset, make_asset
from threedgen.export.asset_folder import FOLDER, asset_name
from threedgen.export.run_field import field_view
from threedgen.export.shape.from_field import FieldView, dense_surface
from threedgen.export.task import progress_bar, save
from threedgen.geometry import picture_file
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import enlarge_small, grid, write_png
from threedgen.geometry.poses import orbit_c2w, square_pixels
from threedgen.geometry.views import Request, Views
from threedgen.guidance.threedim.novel_views import ThreeDiMSampler
from threedgen.guidance.threedim.options import CamerasConfig
from threedgen.representations.fit import Bounds, SceneField, border_colour, fit
from threedgen.run.cache import cached_tensor
from threedgen.run.disk import writing
from threedgen.run.progress import Count
from threedgen.systems.generate.outputs import try_asset, write_mesh, write_turn
from threedgen.systems.generate.result import Run, tell
from threedgen.train.status import Status
from threedgen.train.task import Task, execute
from threedgen.viewer.report import PAGE, write_report

from .options import ImageTo3DConfig

logger = logging.getLogger(__name__)

WHITE = 0.9
"""A border darker than this is not the white background of the training."""


def make(task: Task) -> None:
    """The picture's views, a field fitted to them, and its mesh; views that were all sampled outlive a kill."""
    config, folder, notes = task.config, task.folder, list[str]()
    views = sampled(config, folder, notes, task.quiet)
    with writing(folder):
        write_png(folder / "sampled.png", grid(enlarge_small(views.images), config.views + 1))
    field = fit(views, Bounds.from_cameras(views.cameras), config.protocol, config.seed, config.device)
    with writing(folder):
        write_turn(lambda cameras: field.render_images(from_ball(field, cameras)), config.result, folder, task.quiet)
        provenance = {"image": Path(config.image).name, "seed": config.seed, "config_hash": config_hash(config)}
        view = field_view(field.field, field.occupancy, field.march, field.device)
        figures = write_mesh(view, config.result.mesh_resolution, folder, provenance, notes)
        if figures and config.export.enabled:
            figures |= try_asset(lambda: asset(view, config, provenance, folder / FOLDER, task.quiet), folder, notes)
        made = [figures["asset"]["file"]] if "asset" in figures else []
        task.summarise(notes=notes, files=[*made, PAGE], **figures)
        write_report(folder)


def asset(
    view: FieldView, config: ImageTo3DConfig, provenance: dict[str, Any], place: Path, quiet: bool = True
) -> ExportedAsset:
    """Writes the asset of the field into `place`, named after the picture. Raises ConfigError."""
    name = asset_name(config.export.name or config.prompt)
    with progress_bar(quiet) as on_step:
        on_step("surface")
        dense, notes = dense_surface(view, config.export.grid)
        made = make_asset(dense, config.export, name, view, provenance, True, on_step)
        made.notes = notes + made.notes
        save(made, place, config.export)
    return made


def sampled(config: ImageTo3DConfig, folder: Path, notes: list[str], quiet: bool) -> Views:
    """The picture and the views sampled from it, with their cameras."""
    count = len(config.rings) * config.views
    with Count("sampling steps", count * config.sampler.steps, quiet) as progress:
        sampler = ThreeDiMSampler(config.threedim, lambda done, total, x0: progress.add(1))
        height, width = sampler.model.image_size
        at = cameras(config, sampler.cameras, height, width)
        picture = load_image(Path(config.image).expanduser(), height, width)
        views = Views(picture[None], at.select([0]))
        if float(border_colour(views).min()) < WHITE:
            notes.append("the picture's background is not white, as it was in the training: cut the object out")
            logger.warning("%s", notes[-1])
        targets = range(1, len(at))
        request = Request(Path(config.image).stem, views, at.select(targets), tuple(targets), seed=config.seed)

        def sample() -> Tensor:
            return torch.cat([picture[None], sampler([request])[0]])

        images = cached_tensor(folder / "views.safetensors", "views", (len(at), height, width, 3), sample)
    return Views(images, at)


def cameras(config: ImageTo3DConfig, trained: CamerasConfig | None, height: int, width: int) -> Cameras:
    """That of the picture, then the rings, each beginning at its azimuth. Raises ConfigError if there is no telling."""
    if trained is None and (config.distance is None or config.fov is None):
        raise ConfigError("distance, fov: the weights do not say which cameras they were trained with: give both")
    distance = config.distance or (sum(trained.distance) / 2 if trained else 0.0)
    turn = [360 * k / config.views for k in range(config.views)]
    places = [(config.elevation, config.azimuth), *((up, config.azimuth + a) for up in config.rings for a in turn)]
    elevation, azimuth = torch.deg2rad(torch.tensor(list(zip(*places, strict=True))))
    c2w = orbit_c2w(elevation, azimuth, torch.full_like(azimuth, distance))
    focal = height * (trained.focal if trained else 1.0)
    if config.fov is not None:
        focal = 0.5 * height / math.tan(math.radians(config.fov) / 2)
    K = square_pixels(torch.full((len(c2w),), focal), height, width)
    return Cameras(c2w, Projection(K), height, width)


def load_image(path: Path, height: int, width: int) -> Tensor:
    """(H, W, 3) in [0, 1], in the middle of white of this shape; what is transparent is white."""
    cut = picture_file.load_image(path, key="image").convert("RGBA")
    paper = Image.new("RGBA", cut.size, "white")
    paper.alpha_composite(cut)
    scale = min(height / paper.height, width / paper.width)
    size = max(1, round(paper.width * scale)), max(1, round(paper.height * scale))
    small = paper.convert("RGB").resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    whole = Image.new("RGB", (width, height), "white")
    whole.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    return torch.from_numpy(np.asarray(whole, np.float32) / 255)


def from_ball(field: SceneField, at: Cameras) -> Cameras:
    """Cameras in radii of the field as cameras in the units of the sampled poses."""
    c2w = at.c2w.clone()
    c2w[:, :3, 3] *= field.bounds.radius
    return replace(at, c2w=c2w)


def run(config: ImageTo3DConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Carry out a config; returns the exit code.  Asset and page are printed, and the results' folder last."""
    task = Task(config, resume, quiet, ("sampled.png", "turntable.mp4", "views.png", "mesh.glb"))
    status = execute(make, task)
    if status is Status.FINISHED:
        tell(Run(task.folder, status.value), quiet)
    return status.exit_code
