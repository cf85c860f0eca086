"""Views that the prior samples from the prompt at the beginning of a run: the preview, and the views of the warm start.

The prior first samples one group of `camera.n_view` views together. If the config has an image, the image is the first
view of this group, and the other views are conditioned on it. Further groups all around the object are then conditioned
on the first group, so that they show the same object.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.image_file import read_foreground
from threedgen.geometry.images import grid, write_png
from threedgen.geometry.poses import orbit_c2w
from threedgen.geometry.rigs import orbit, ring_rig
from threedgen.geometry.views import GREY, framed
from threedgen.guidance.completion import complete_views
from threedgen.guidance.matte import remover
from threedgen.guidance.prior import Prior
from threedgen.guidance.sampling import OnStep
from threedgen.run.cache import cached_tensor
from threedgen.run.disk import writing
from threedgen.run.progress import ProgressDisplay
from threedgen.run.seeding import generator
from threedgen.run.torch_file import read_safetensors
from threedgen.systems.generate.options import GenerateConfig

logger = logging.getLogger(__name__)

TEXT = "text.safetensors"
"""File in the run folder with the text embeddings."""
MEAN_OBJECT_SIZE = 0.7
"""Longer side of the object as a fraction of the image side; the mean value in renders of toybox objects."""
OBJECT_SIZES, OBJECT_SIZE_WEIGHT = tuple(0.4 + 0.05 * k for k in range(10)), 7.0
"""Sizes that `best_object_size` tries, as fractions of the image side, and weight of its penalty.

The function minimises log(relative error of the prediction) + weight * (size - MEAN_OBJECT_SIZE)^2. For front views of
72 toybox objects, its size has an RMS error of 0.07; the constant MEAN_OBJECT_SIZE has 0.10.
"""
IMAGE_WEIGHT = 4  # weight of the given image in the fit; each completed view has weight 1


def first_view(config: GenerateConfig, prior: Prior) -> Tensor | None:
    """Return the image of the config as the first view (1, H, W, 3) in [0, 1]; None if the config has no image.

    The object is cut out and placed on grey; H = W is the image size of the prior. Raises ConfigError if there is an
    image and the prior cannot sample new views from known ones.
    """
    image = config.first_view
    if image is None:
        return None
    if not prior.completes_views:
        raise ConfigError("the weights of this prior were not trained to complete views", "image", image)
    cut, size = torch.from_numpy(read_foreground(image, remover(config.matte))), prior.image_size
    return framed(cut, size, size, best_object_size(config, prior, cut))[None]


@torch.no_grad()
def best_object_size(config: GenerateConfig, prior: Prior, cut: Tensor) -> float:
    """Return the size to give the object in the first view: its longer side as a fraction of the image side.

    `cut` is the cut-out object, RGBA (h, w, 4) in [0, 1]. The camera distance is the same for all views, so a long
    object that is seen from its end must be small in the first view: views of its long side must fit too. The result is
    0.7 if the prior has no coarse predictor, a network that predicts latents without denoising. Otherwise sizes from
    0.4 to 0.85 are tried:

    1. The object is placed on grey at this size, and the image is encoded to latents x.
    2. An object code (vector of what the prompt leaves unspecified) is computed from x.
    3. The coarse predictor predicts the latents y of this view from the prompt and the code.

    With g the latents of an empty grey image, |x - y|^2 / |x - g|^2 is the relative error of the prediction. It is low
    for a size that the object has in the training images of the prior. The result is the size s with the lowest
    log(relative error) + 7 (s - 0.7)^2, where 0.7 is the mean size of toybox objects, the training objects of the
    embedded prior.
    """
    size, count = prior.image_size, len(OBJECT_SIZES)
    c2w = view_cameras(config, 1, size).c2w[:1].expand(count, -1, -1)
    text = prior.encode_prompt([config.object_text()]).expand(count, -1, -1)
    if prior.coarse_latents(text[:1], c2w[:1], False) is None:
        return MEAN_OBJECT_SIZE
    grey = torch.full((1, size, size, 3), GREY)
    images = torch.cat([grey, *(framed(cut, size, size, each)[None] for each in OBJECT_SIZES)])
    empty, latents = prior.encode_images(images, generator(config.seed, 0, "share")).split([1, count])
    predicted = prior.coarse_latents(prior.encode_code(text, latents[:, None], c2w[:, None]), c2w, False)
    assert predicted is not None
    error, scale = ((latents - other).square().flatten(1).sum(1) for other in (predicted, empty))
    sizes = torch.tensor(OBJECT_SIZES, device=error.device)
    penalty = OBJECT_SIZE_WEIGHT * (sizes - MEAN_OBJECT_SIZE) ** 2
    return OBJECT_SIZES[int(((error / scale).log() + penalty).argmin())]


def sample_views(
    config: GenerateConfig,
    prior: Prior,
    text_embeddings: Tensor,
    image: Tensor | None,
    folder: Path,
    quiet: bool = False,
    inputs: str = "",
) -> tuple[Tensor | None, Cameras | None]:
    """Sample views of the object from the prompt, in groups of `camera.n_view` views. Cache them in the run folder.

    The number of groups is G = `warm_start.groups` with a warm start and a prior that can sample new views from known
    ones, otherwise G = 1. All further groups are conditioned on the first, so that they show the same object. The first
    group is written to preview.png.

    Args:
        text_embeddings: (n, L, D) embeddings; the first is of the prompt, the second of the negative prompt.
        image: (1, H, W, 3) in [0, 1], given first view of the first group. It is not sampled, and the other views of
            the group are conditioned on it. None: all views are sampled.
        quiet: show no progress.
        inputs: hash of the prior and the image file; views cached with another one are sampled again.

    Returns:
        Images (V, H, W, 3) in [0, 1], sharpened as the option `warm_start.sharpen` says, and their V cameras; H = W is
        the image size of the prior. V = G * `camera.n_view` without `image`. With `image` there are 3 more, because the
        given view and its camera are repeated: entries 0 to 3 are equal, so that the given view has four times the
        weight of another view in the fit. (None, None) for a single-view prior, or if the config has neither preview
        nor warm start.
    """
    p, n_view, size = config.preview, config.views_per_scene, prior.image_size
    if not (p.enabled or config.warm_steps) or n_view < 2:
        return None, None
    groups = config.warm_start.groups if config.warm_steps else 1
    if groups > 1 and not prior.completes_views:
        logger.warning("warm_start.groups=%d has no effect: these weights were not trained to complete views", groups)
        groups = 1
    cameras = view_cameras(config, groups, size)

    def sample() -> Tensor:
        (folder / "preview.png").unlink(missing_ok=True)  # shows earlier views
        rng, c2w = generator(config.seed, 0, "preview"), cameras.c2w
        pair = text_embeddings.to(prior.device)[:2].split(1)

        def complete(views: Tensor, count: int, steps: int) -> Tensor:
            known, new = c2w[: len(views)], c2w[len(views) : count]
            if not len(new):
                return views
            scale = config.warm_start.guidance_scale
            with step_count("completing views", quiet) as on_step:
                sampled = complete_views(prior, pair, views, known, new, steps, scale, rng, on_step)
            return torch.cat([views, sampled])

        if image is not None:
            views = complete(image, n_view, p.steps)
        else:
            with step_count("sampling views", quiet) as on_step:
                views = prior.sample_text(pair, c2w[:n_view], p.steps, p.guidance_scale, rng, on_step)
        return complete(views, len(c2w), math.ceil(p.steps / 2))

    views = cached_tensor(folder / "preview.safetensors", "views", (len(cameras), size, size, 3), sample, inputs)
    if not (folder / "preview.png").exists():
        with writing(folder):
            write_png(folder / "preview.png", grid(views[:n_view], n_view))
    views = sharpen(views, config.warm_start.sharpen)
    if image is None:
        return views, cameras
    order = torch.tensor([0] * (IMAGE_WEIGHT - 1) + list(range(len(views))))
    return views[order], cameras.select(order)


@contextmanager
def step_count(label: str, quiet: bool) -> Iterator[OnStep]:
    """Return a context that shows the progress of a sampler with the label `label`; `quiet`: show nothing.

    Its value is a function that the sampler calls after each step with two numbers: steps done, and all steps.
    """
    with ExitStack() as stack:
        count: ProgressDisplay | None = None

        def on_step(done: int, steps: int) -> None:
            nonlocal count
            count = count or stack.enter_context(ProgressDisplay(label, steps, quiet))
            count.total = steps
            count.show(done)

        yield on_step


def view_cameras(config: GenerateConfig, groups: int, size: int) -> Cameras:
    """Return the cameras of `groups` groups of `camera.n_view` views, with images of `size` x `size` pixels.

    All have the distance and field of view of the config section `preview`. The first group, k = 0, has the elevation
    and azimuths of that section. Each further group k = 1, 2, ... is a ring of cameras with one elevation and evenly
    spaced azimuths. The rings differ, so that together they see the object from many directions:

    - Azimuths: the ring starts at the first azimuth of `preview`, plus k / `groups` of the angle between two
      neighbouring cameras of the ring.
    - Elevation: it lies at the fraction (0.5 + 0.618 k) mod 1 of `camera.elevation_range`, from 0 (lowest) to 1
      (highest). These fractions (golden ratio) are spread evenly for any number of groups.
    """
    p, n_view, elevations = config.preview, config.views_per_scene, config.camera.elevation_range
    azimuths = torch.deg2rad(torch.tensor(p.azimuth)) if isinstance(p.azimuth, tuple) else None
    start = p.azimuth[0] if isinstance(p.azimuth, tuple) else p.azimuth
    elevation, azimuth, fov = (math.radians(angle) for angle in (p.elevation, start, p.fov))
    first = orbit(n_view, elevation, p.distance, fov, size, size, azimuth=azimuth)
    if azimuths is not None:
        parts = torch.full_like(azimuths, elevation), azimuths, torch.full_like(azimuths, p.distance)
        first = replace(first, c2w=orbit_c2w(*parts))
    if groups == 1:
        return first
    rings = ring_rig(groups, n_view, elevations, p.distance, p.fov, size, azimuth).cameras
    c2w = torch.cat([first.c2w, rings.c2w[n_view:]])
    return Cameras(c2w, Projection.perspective(torch.full((len(c2w),), fov), size, size), size, size)


def sharpen(images: Tensor, amount: float) -> Tensor:
    """Sharpen images (V, H, W, 3) in [0, 1] by an unsharp mask: image + amount * mean(image - blurred image).

    The mean is over the three channels: only the brightness is sharpened, since sharper colours show more blotches. The
    standard deviation of the Gaussian blur is 1/64 of the image height. `amount` 0 returns the images unchanged.
    """
    if not amount:
        return images
    sigma, x = images.shape[1] / 64, images.permute(0, 3, 1, 2)
    size = 2 * math.ceil(3 * sigma) + 1
    blurred = gaussian_blur2d(x, (size, size), (sigma, sigma))
    return (x + amount * (x - blurred).mean(1, keepdim=True)).clamp(0, 1).permute(0, 2, 3, 1)


def object_text(folder: Path, prior: Prior) -> Tensor:
    """Return the embedding (1, L, D) of a run's prompt, which is stored in the run folder `folder`.

    The last of its L rows is the object code of that run, a vector of what the prompt leaves unspecified.

    Raises ConfigError if the run has another prior, or if the prior has no object codes.
    """
    if not prior.has_code:
        raise ConfigError("needs weights with object codes, such as prior.weights=embedded", "edit", str(folder))
    text = read_safetensors(folder / TEXT)["text"][:1]
    if text.shape[1:] != prior.text_shape:
        raise ConfigError("is a run of another prior. Use the prior of that run", "edit", str(folder))
    return text.to(prior.device)
