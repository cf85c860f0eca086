"""The task "image-to-3d": samples views around the object of an image, fits a field to them, and exports a mesh.

RUN/sampled.png         a row per ring (circle of cameras): the resized input image, then the sampled views
RUN/views.safetensors   the input image and the sampled views, for a resumed run
RUN/turntable.mp4, views.png, mesh.glb, asset/, report.html   results in the same format as those of the task generate

All cameras look at the origin. One unit of the mesh is the radius of the ball around the origin that the field fills:
half the camera distance, or less if the images show less.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
from threedgen.geometry import image_file
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import enlarge_small, grid, write_png
from threedgen.geometry.poses import orbit_c2w, square_pixels
from threedgen.geometry.views import Request, Views, border_pixels
from threedgen.guidance.matte import remover
from threedgen.guidance.novel_view.novel_views import ThreeDiMSampler
from threedgen.guidance.novel_view.options import CamerasConfig
from threedgen.representations.fit import Bounds, fit
from threedgen.run.arrays import Array
from threedgen.run.cache import cached_tensor, digest, input_digest
from threedgen.run.disk import writing
from threedgen.run.progress import ProgressDisplay
from threedgen.systems.generate.outputs import try_asset, write_mesh, write_turn
from threedgen.systems.generate.result import Run, print_result
from threedgen.train.status import Status
from threedgen.train.task import Task, run_prepared
from threedgen.viewer.report import PAGE, write_report

from .options import ImageTo3DConfig

logger = logging.getLogger(__name__)

MIN_WHITE = 0.9
"""Minimum border colour, in [0, 1], of a background that counts as white. The training images are on white."""


def make(task: Task) -> None:
    """Sample views around the object in the image, fit a field to them, and write the results.

    Raises ConfigError if the image, the weights or the camera options cannot be used.
    """
    config, folder, notes = task.config, task.folder, list[str]()
    views = sample_views(config, folder, notes, task.quiet)
    with writing(folder):
        image, sampled = views.images[:1], views.images[1:]
        rows = torch.cat([torch.cat([image, ring]) for ring in sampled.split(config.views)])
        write_png(folder / "sampled.png", grid(enlarge_small(rows), config.views + 1))
    field = fit(views, Bounds.from_cameras(views.cameras), config.protocol, config.seed, "auto")

    def render(cameras: Cameras) -> Tensor:
        c2w = cameras.c2w.clone()
        c2w[:, :3, 3] *= field.bounds.radius  # the turntable is in radii of the field
        return field.render_images(replace(cameras, c2w=c2w))

    with writing(folder):
        write_turn(render, config.result, folder, task.quiet)
        provenance = {"image": Path(config.image).name, "seed": config.seed, "config_hash": config_hash(config)}
        view = field_view(field.field, field.occupancy, field.march, field.device)
        figures = write_mesh(view, config.result.mesh_resolution, folder, provenance, notes)
        if figures and config.export.enabled:
            figures |= try_asset(lambda: asset(view, config, provenance, folder / FOLDER, task.quiet), folder, notes)
        made = [figures["asset"]["file"]] if "asset" in figures else []
        task.summarise(notes=notes, files=[*made, PAGE], **figures)
        write_report(folder)


def asset(
    view: FieldView, config: ImageTo3DConfig, provenance: dict[str, object], folder: Path, quiet: bool = True
) -> ExportedAsset:
    """Write the textured mesh of a field (asset) to `folder`, and return it.

    `view` has the density and colour of the field as functions. `provenance` (image, seed, config hash) is stored in
    the files. `quiet`: show no progress. Raises ConfigError if the export fails.
    """
    name = asset_name(config.export.name or config.prompt)
    with progress_bar(quiet) as on_step:
        on_step("surface")
        dense, notes = dense_surface(view, config.export.sizes.resolution)
        made = make_asset(dense, config.export, name, view, provenance, True, on_step)
        made.notes = notes + made.notes
        save(made, folder, config.export)
    return made


def sample_views(config: ImageTo3DConfig, folder: Path, notes: list[str], quiet: bool) -> Views:
    """Sample views around the object in the image, or read the views of an interrupted run.

    Returns images (N, H, W, 3) in [0, 1] with cameras: the input image, then `config.views` samples for each elevation
    in `config.rings`. H x W is the image size of the network. If the background of the image is not white, a warning is
    appended to `notes`. Raises ConfigError if the image, the weights or the camera options cannot be used.
    """
    count = len(config.rings) * config.views
    with ProgressDisplay("sampling steps", count * config.sampler.steps, quiet) as progress:
        sampler = ThreeDiMSampler(config.threedim, lambda done, total, x0: progress.add(1))
        height, width = sampler.model.image_size
        at = cameras(config, sampler.cameras, height, width)
        photo = read_on_white(Path(config.image).expanduser(), remover(config.matte))
        image = fit_on_canvas(photo, height, width)
        views = Views(image[None], at.select([0]))
        # of the photo itself: the canvas around a photo of another shape is white
        border = border_pixels(torch.from_numpy(np.asarray(photo, np.float32) / 255)[None])
        if float(border.reshape(-1, 3).median(0).values.min()) < MIN_WHITE:
            notes.append("the image's background is not white, as in the training. Cut the object out")
            logger.warning("%s", notes[-1])
        targets = range(1, len(at))
        request = Request(Path(config.image).stem, views, at.select(targets), tuple(targets), seed=config.seed)

        def sample() -> Tensor:
            return torch.cat([image[None], sampler([request])[0]])

        inputs = input_digest([image], digest(sampler.model))
        images = cached_tensor(folder / "views.safetensors", "views", (len(at), height, width, 3), sample, inputs)
    return Views(images, at)


def cameras(config: ImageTo3DConfig, trained: CamerasConfig | None, height: int, width: int) -> Cameras:
    """Return the camera of the input image, then the cameras of the views to sample. All look at the origin.

    Each elevation in `config.rings` has `config.views` evenly spaced cameras. They start at the azimuth of the image
    and go around counter-clockwise, seen from above.

    Args:
        trained: cameras of the training data, for the distance or field of view if the config has none; None: unknown.
        height, width: image size in pixels.

    Raises:
        ConfigError: the distance or field of view is neither in the config nor in `trained`.
    """
    if trained is None and (config.distance is None or config.fov is None):
        raise ConfigError("distance, fov: the weights have no cameras of their training. Set both")
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


def read_on_white(path: Path, opacity: Callable[[Array], Array] | None = None) -> Image.Image:
    """Read an image as RGB. Transparent parts become white.

    For an image without transparency, `opacity` computes the opacity (H, W) of the object from the pixels (H, W, 3),
    both in [0, 1], and the background becomes white; None: the background stays. Raises ConfigError if the file is not
    a readable image.
    """
    image = image_file.load_image(path, key="image").convert("RGBA")
    if opacity is not None and image.getchannel("A").getextrema() == (255, 255):
        alpha = opacity(np.asarray(image.convert("RGB"), np.float32) / 255)
        image.putalpha(Image.fromarray(np.round(255 * alpha).astype(np.uint8)))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def fit_on_canvas(image: Image.Image, height: int, width: int) -> Tensor:
    """Resize an RGB image to fit in the middle of a white canvas: (height, width, 3) in [0, 1]."""
    scale = min(height / image.height, width / image.width)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    fitted = image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    whole = Image.new("RGB", (width, height), "white")
    whole.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
    return torch.from_numpy(np.asarray(whole, np.float32) / 255)


def run(config: ImageTo3DConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task, print the paths of its results with the run folder on the last line, and return the exit code.

    `resume`: run folder to resume; None: a new run. `quiet`: print only the folder, and show no progress.
    """
    task = Task(config, resume, quiet, ("sampled.png", "turntable.mp4", "views.png", "mesh.glb"))
    status = run_prepared(make, task)
    if status is Status.FINISHED:
        print_result(Run(task.folder, status.value), quiet)
    return status.exit_code
