"""Sampling of panoramas: V views around one point are sampled together from text, or around an image, and stitched.

Views are ordered left to right; view 0 looks along +x. In this module, K (3, 3) has the centre of the first pixel at
(0, 0), and R (V, 3, 3) are camera-to-world rotations with OpenCV axes (`geometry.panorama`).

RUN/views/N.png           the views; RUN/views.safetensors has them for a resumed run
RUN/cameras.json          cameras of the views (format: ``geometry.cameras_file``)
RUN/given/N.png           pixels of view N that the input image shows; the others are transparent
RUN/panorama.png          equirectangular image with view 0 in the middle, without the poles that no view shows
RUN/panorama.mp4, .html   video of one turn to the right, and a page to look around
"""

import logging
from collections.abc import Iterator
from math import atan, degrees, pi, radians, tan
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.geometry import panorama as pano
from threedgen.geometry.cameras_file import CAMERAS_FILE, write_cameras
from threedgen.geometry.image_file import load_image
from threedgen.geometry.images import png, to_uint8, write_mp4, write_png
from threedgen.geometry.views import resize
from threedgen.geometry.warp import apply_homography, homography, inside, pixel_grid
from threedgen.geometry.warp import sample as sample_pixels
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.guidance.sampling import Size, ViewSync, total_steps
from threedgen.run.arrays import Array
from threedgen.run.cache import cached_tensor, input_digest
from threedgen.run.disk import make_folder, write_atomic, writing
from threedgen.run.prompts import prompt_warnings
from threedgen.run.seeding import generator
from threedgen.train.task import Task
from threedgen.viewer.page import write_panorama_page

from .adapter import write_views
from .options import FilmConfig, PanoramaConfig, SampleConfig

logger = logging.getLogger(__name__)

IMAGE, FILM, PAGE = "panorama.png", "panorama.mp4", "panorama.html"
FILES: tuple[str, ...] = (IMAGE, FILM, PAGE, CAMERAS_FILE)
SUPERSAMPLE = 2  # samples per pixel along each axis when the image is warped into a view
FRAME_BATCH = 8


def sample(task: Task, rig: PanoramaConfig) -> None:
    """Sample the views of a panorama, and write them, the stitched image, a video and an HTML page to the run folder.

    The page shows the panorama from its centre; the user can turn the view. Raises ConfigError if the weights do not
    fit the config, and Stopped after Ctrl-C.
    """
    config: SampleConfig = task.config
    texts, model = config.view_texts(rig.views), task.load_prior(compact=True).compact()
    check_model(model, config, rig)
    notes = list(dict.fromkeys(note for text in dict.fromkeys(texts) for note in prompt_warnings(text, model)))
    if model.extra == "mask" and config.image is None:
        notes.append("image is not set, so the panorama is sampled from the text alone")
        logger.warning("%s", notes[-1])
    K, R = pano.intrinsics(radians(rig.fov), rig.size, rig.size), pano.ring(rig.views)
    at = pano.cameras(R, radians(rig.fov), rig.size, rig.size)
    known, mask = known_views(config, rig, rig.size)

    def conditions(size: Size) -> tuple[Tensor | None, None]:
        if model.extra != "mask":
            return None, None
        return model.masked_extra(*known_views(config, rig, size[0])), None

    def synchronise(views: Tensor) -> Tensor:
        rendered = pano.render_from_views(views.permute(0, 3, 1, 2), K, R, K, R, rig.size, rig.size)
        return rendered.permute(0, 2, 3, 1)

    def sample_views() -> Tensor:
        with task.track_progress("denoising", total_steps(config.steps, model.draft, config.synchronise)) as on_step:
            return model.sample_views(
                texts,
                model.geometry(at),
                (rig.size, rig.size),
                conditions,
                steps=config.steps,
                guidance_scale=config.guidance(9.0),
                negative_prompt=config.negative_prompt,
                generator=generator(config.seed, 0, "panorama"),
                on_step=on_step,
                eta=config.eta,
                sync=ViewSync(config.synchronise, synchronise),
            )

    inputs = input_digest([known, mask], task.weights)
    views = cached_tensor(task.folder / "views.safetensors", "views", tuple(known.shape), sample_views, inputs)
    with writing(task.folder):
        write_known(task.folder / "given", known, mask)
        files = write_views(task.folder, views, [str(number) for number in range(rig.views)])
        write_cameras(task.folder / CAMERAS_FILE, at, files, texts)
        height = write_panorama(task.folder, views, rig, config.prompt.strip() or config.prompts[0])
        share = mask.double().mean().item()
        task.summarise(notes=notes, prompts=texts, height_in_degrees=height, given_share=share, files=files)


def check_model(model: MVDiffusion, config: SampleConfig, rig: PanoramaConfig) -> None:
    """Raise ConfigError if the weights of `model` do not fit the config.

    They must not be for views of known depth, must take an image if the config has one, and must support square views
    of side `rig.size`, in pixels.
    """
    if model.extra == "depth" or (model.multiview is not None and model.multiview.kind != "panorama"):
        problem = "these weights are for views of known depth. Use those of mvdiffusion-pano-toybox or -sd21"
        raise ConfigError(problem, "prior.weights", config.prior.weights)
    if config.image is not None and model.extra != "mask":
        problem = "these weights take text only. Use those of mvdiffusion-outpaint-toybox or -sd2"
        raise ConfigError(problem, "image", config.image)
    model.check_size((rig.size, rig.size), ("rig.size", "rig.size"))


def known_views(config: SampleConfig, rig: PanoramaConfig, size: int) -> tuple[Tensor, Tensor]:
    """Warp the config's image, if there is one, into the V views of a panorama.

    `size` is the side of a view in pixels. Returns views (V, size, size, 3) in [0, 1], 0 where unknown, and bool masks
    (V, size, size), True where the image shows the pixel. Without an image, no pixel is known.
    """
    if config.image is None or rig.image_fov is None:
        return torch.zeros(rig.views, size, size, 3), torch.zeros(rig.views, size, size, dtype=torch.bool)
    image = load_image(Path(config.image).expanduser(), key="image").convert("RGB")
    pixels, K = torch.from_numpy(np.asarray(image, np.float32) / 255), pano.intrinsics(radians(rig.fov), size, size)
    return warp_image(pixels, radians(rig.image_fov), K, pano.ring(rig.views), size)


def warp_image(image: Tensor, fov: float, K: Tensor, R: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Warp an image, which looks in the direction of view 0, into the views of a panorama.

    An image whose field of view is not wider than a view's is used in view 0 only, as in the reference code of
    MVDiffusion. A wider image is used in all views that it overlaps; the reference code instead crops it to a square of
    90 degrees.

    Args:
        image: (H, W, 3) in [0, 1], with the horizontal field of view `fov` in radians.
        K: intrinsics (3, 3) of every view in pixels, with the centre of the first pixel at (0, 0).
        R: camera-to-world rotations (V, 3, 3) of the views, OpenCV axes.
        size: side of the views in pixels.

    Returns:
        Views (V, size, size, 3) in [0, 1], 0 where unknown, and bool masks (V, size, size), True for known pixels.
    """
    K_image, K_fine = pano.intrinsics(fov, *image.shape[:2]), resize_intrinsics(K, SUPERSAMPLE, SUPERSAMPLE)
    reduction = float(K_image[0, 0] / K_fine[0, 0])
    if reduction > 1:  # else the samples would skip pixels
        rows, columns = image.shape[:2]
        image = resize(image[None], *(max(1, round(side / reduction)) for side in (rows, columns)))[0]
        K_image = resize_intrinsics(K_image, image.shape[1] / columns, image.shape[0] / rows)
    H = homography(K_fine, R, K_image, pano.rotation(0.0))[:, None]
    pixels, front = apply_homography(H, pixel_grid(SUPERSAMPLE * size, SUPERSAMPLE * size))
    height, width = image.shape[:2]
    visible = front & inside(pixels + 0.5, height + 1, width + 1)  # up to the outer borders of the pixels
    if tan(fov / 2) <= 0.5 * size / float(K[0, 0]) + 1e-6:
        visible[1:] = False
    views = sample_pixels(image.permute(2, 0, 1).expand(len(R), -1, -1, -1), pixels, padding="border")
    mask = F.avg_pool2d(visible.float(), SUPERSAMPLE) == 1
    return F.avg_pool2d(views, SUPERSAMPLE).permute(0, 2, 3, 1) * mask[..., None], mask


def resize_intrinsics(K: Tensor, x: float, y: float) -> Tensor:
    """Scale intrinsics K (3, 3) for an image whose width changes by the factor `x` and its height by the factor `y`.

    In both the given and the returned matrix, the centre of the first pixel is at (0, 0).
    """
    scale, half = torch.diag(K.new_tensor([x, y, 1])), torch.eye(3, dtype=K.dtype)
    half[:2, 2] = 0.5
    return torch.linalg.inv(half) @ scale @ half @ K


def write_known(folder: Path, views: Tensor, mask: Tensor) -> None:
    """Write the known pixels of each view to folder/N.png, where N is the index of the view.

    `views` is (V, H, W, 3) in [0, 1], and `mask` (V, H, W) is True where a pixel is known. Other pixels become
    transparent. A view without known pixels is not written.
    """
    pixels = to_uint8(torch.cat([views, mask[..., None].to(views)], -1))
    for number in mask.flatten(1).any(1).nonzero()[:, 0].tolist():
        make_folder(folder)
        write_atomic(folder / f"{number}.png", png(pixels[number]))


def write_panorama(folder: Path, views: Tensor, rig: PanoramaConfig, title: str) -> float:
    """Stitch views (V, H, W, 3) in [0, 1] to a panorama; write it to `folder` as image, video and HTML page.

    The files are panorama.png (equirectangular), panorama.mp4 (one turn) and panorama.html, in which the user can look
    around. `rig` has the options of the cameras and of the video. `title` is the title of the page. Returns the
    vertical field of view of the panorama in degrees.
    """
    K = pano.intrinsics(radians(rig.fov), rig.size, rig.size)
    stitched, weights = pano.stitch(views.permute(0, 3, 1, 2), K, pano.ring(rig.views), rig.height, 2 * rig.height)
    panorama = stitched[:, pano.covered_rows(weights)].clamp(0, 1)
    write_png(folder / IMAGE, panorama.permute(1, 2, 0))
    write_mp4(film_frames(panorama, rig.film), folder / FILM, rig.film.fps)
    write_panorama_page(folder / PAGE, folder / IMAGE, title)
    return degrees(2 * pi * panorama.shape[1] / panorama.shape[2])


def film_frames(panorama: Tensor, film: FilmConfig) -> Iterator[Array]:
    """Render uint8 frames (h, w, 3) of one turn to the right from an equirectangular image (3, H, W) in [0, 1].

    `film` has the number, the size in pixels and the field of view of the frames. The field of view is reduced if a
    frame would extend beyond the upper or lower edge of the image.
    """
    half_height = 0.98 * pi * panorama.shape[1] / panorama.shape[2]  # radians
    max_fov = 2 * atan(tan(half_height) * film.width / film.height) if half_height < pi / 2 else pi
    K = pano.intrinsics(min(radians(film.fov), max_fov), film.height, film.width)
    for first in range(0, film.frames, FRAME_BATCH):
        numbers = range(first, min(first + FRAME_BATCH, film.frames))
        R = torch.stack([pano.rotation(2 * pi * n / film.frames) for n in numbers])
        yield from to_uint8(pano.equirectangular_views(panorama, K, R, film.height, film.width).permute(0, 2, 3, 1))
