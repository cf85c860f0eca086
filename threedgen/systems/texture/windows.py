"""Sampling of a scene's frames in windows (MVDiffusion, arXiv 2307.01097, section 4.2).

A window is a set of frames that are denoised together. The first windows have key frames only. Each later window has
two consecutive key frames, which condition the frames between them. Each frame is sampled once and saved.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.image_file import load_image
from threedgen.geometry.images import to_uint8, write_png
from threedgen.geometry.views import resize
from threedgen.guidance.priors.mvdiffusion.inputs import depth_channels, given_condition
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.guidance.sampling import NO_SYNC, Size, ViewSync, total_steps
from threedgen.run.arrays import Array
from threedgen.run.cache import input_digest
from threedgen.run.disk import make_folder, write_atomic, writing
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import ProgressDisplay
from threedgen.run.seeding import generator

from .frames import Frames
from .options import PathConfig, TextureConfig

logger = logging.getLogger(__name__)

Synchronise = Callable[[Cameras, Tensor, Tensor], Tensor]
"""Function (F cameras, images (F, H, W, 3), bool mask (F,)) -> consistent images (F, H, W, 3).

The mask is True for frames that an earlier window (set of frames that are denoised together) has sampled.
"""


@dataclass(frozen=True)
class Window:
    """Set of frames that are denoised together.

    `frames` are the indices of all frames of the window. `known` are the indices of the frames that an earlier window
    has sampled; these frames condition the other frames.
    """

    frames: tuple[int, ...]
    known: tuple[int, ...] = ()

    @property
    def new(self) -> tuple[int, ...]:
        return tuple(n for n in self.frames if n not in self.known)


def plan(keys: Sequence[int], rig: PathConfig) -> list[Window]:
    """Divide the frames of a scene into windows, and return these in the order of sampling.

    A window is a set of frames that are denoised together: at most W = `rig.views`, or 3 if W is 2. `keys` are the
    ascending indices of the key frames.

    - The first windows contain the key frames. Each has W consecutive ones, or all if there are fewer. A window shares
      at least W // 3 of them, and at least one, with the window before it.
    - The later windows contain the frames between two consecutive key frames. These frames are divided into groups of
      at most W - 2 (1 if W is 2) consecutive ones. Each window has such a group and the two key frames.
    """
    last, shared = max(0, len(keys) - rig.views), max(1, rig.views // 3)
    windows, done = list[Window](), set[int]()
    for start in (*range(0, last, rig.views - shared), last):
        frames = tuple(keys[start : start + rig.views])
        windows.append(Window(frames, tuple(n for n in frames if n in done)))
        done |= set(frames)
    count = rig.views - 2 or 1
    for left, right in zip(keys, keys[1:], strict=False):
        for start in range(left + 1, right, count):
            windows.append(Window((left, *range(start, min(start + count, right)), right), (left, right)))
    return windows


def check_model(model: MVDiffusion, rig: PathConfig) -> None:
    """Raise ConfigError if the model does not take depth, or cannot sample the image size of the camera path `rig`.

    `rig` has the options of the cameras, with the height and width of the images.
    """
    if model.extra != "depth" or model.multiview is not None and model.multiview.kind != "depth":
        raise ConfigError("these weights take no depth. Use a depth model's, such as toybox-depth", "prior.blocks")
    model.check_size((rig.height, rig.width), ("rig.height", "rig.width"))


def saved_images(folder: Path, frames: Frames, keys: Sequence[int], weights: Mapping[str, str]) -> dict[int, Array]:
    """Read the images that an interrupted run saved as folder/NAME.png: {frame index: uint8 image (H, W, 3)}.

    NAME is the name of the frame in `frames.names`. Missing and damaged files, and images of another size, are left
    out. Images of a run with other inputs are deleted first: folder/source.txt has a hash of the frames, the indices
    `keys` of the key frames, and `weights` (checksums of the model by config key). If this file is missing or its hash
    differs, the folder is emptied and the new hash written.
    """
    source_file, images = folder / "source.txt", dict[int, Array]()
    tensors = (frames.depth, frames.cameras.c2w, frames.cameras.K)
    source = input_digest(tensors, frames.prompts, frames.names, list(keys), weights) + "\n"
    with writing(folder):
        if folder.exists() and (not source_file.is_file() or source_file.read_text() != source):
            logger.warning("%s has frames of other inputs; they are sampled again", folder)
            shutil.rmtree(folder)
        make_folder(folder)
        write_atomic(source_file, source)
    for n, name in enumerate(frames.names):
        with suppress(ConfigError):  # missing or damaged
            image = np.asarray(load_image(folder / f"{name}.png").convert("RGB"))
            if image.shape == (frames.cameras.height, frames.cameras.width, 3):
                images[n] = image
    return images


def stack(images: Mapping[int, Array], numbers: Sequence[int]) -> Tensor:
    """Stack images to a float tensor (N, H, W, 3) in [0, 1].

    `images` has uint8 images (H, W, 3) by frame index, and `numbers` are the N frame indices to stack.
    """
    return torch.from_numpy(np.stack([images[n] for n in numbers])).float() / 255


@dataclass(frozen=True)
class WindowSampler:
    """Sampler of the frames of a scene with MVDiffusion, one window after the other.

    A window is a set of frames that are denoised together. Windows overlap: the frames that an earlier window has
    sampled condition the new ones. `sample_all(folder, quiet)` samples all windows, adds the images of the new frames
    to `images`, and writes them to `folder`.

    Attributes:
        config, model: options of the task, and MVDiffusion model that takes depth.
        frames: cameras, depth (N, H, W) in metres and prompts of all N frames of the scene.
        windows: windows in the order of sampling. Each has the indices of its frames, and says which of these an
            earlier window samples.
        images: images of the frames that are sampled so far, uint8 (H, W, 3) by frame index.
        synchronise: function that makes images of F frames consistent by projection onto the mesh; None without a mesh.
            It maps F cameras, images (F, H, W, 3) and a bool mask (F,), True for frames that an earlier window has
            sampled, to images (F, H, W, 3).
    """

    config: TextureConfig
    model: MVDiffusion
    frames: Frames
    windows: Sequence[Window]
    images: dict[int, Array]
    synchronise: Synchronise | None = None

    def sample_all(self, folder: Path, quiet: bool) -> None:
        """Sample all windows, one after the other. Add the images to the attribute `images` and write them to `folder`.

        A window is a set of frames that are denoised together. Its new frames are those that no earlier window has;
        only their images are kept. `images` maps frame indices to images. At the start it may have those of an
        interrupted run: a window whose new frames are all there is left out. A file is folder/NAME.png, where NAME is
        the name of the frame. `quiet`: show no progress. Raises Stopped after Ctrl-C.
        """
        waiting = [k for k, window in enumerate(self.windows) if any(n not in self.images for n in window.new)]
        steps = total_steps(self.config.steps, self.model.draft, self.config.synchronise)
        total, done = len(self.windows) * steps, (len(self.windows) - len(waiting)) * steps
        with Interrupts() as interrupts, ProgressDisplay("sampling", total, quiet, done=done) as count:

            def on_step() -> None:
                interrupts.raise_if_stopped()
                count.add(1)

            for k in waiting:
                samples = to_uint8(self.sample(k, on_step))
                with writing(folder):
                    for n, image in zip(self.windows[k].frames, samples, strict=True):
                        if n in self.windows[k].new:
                            self.images[n] = image
                            write_png(folder / f"{self.frames.names[n]}.png", image)

    def sample(self, number: int, on_step: Callable[[], None]) -> Tensor:
        """Sample all F frames of the window with the index `number`: images (F, H, W, 3) in [0, 1].

        A window is a set of frames that are denoised together. Frames that an earlier window has sampled condition the
        others: their images are taken from the attribute `images`. The result has all F frames, but its images of the
        earlier frames can differ from those in `images`, so use only the new ones. `images` is not changed. `on_step`
        is called before each denoising step.
        """
        window, config, model = self.windows[number], self.config, self.model
        numbers = list(window.frames)
        cameras, depth = self.frames.cameras.select(numbers), self.frames.depth[numbers]
        known = torch.tensor([n in window.known for n in numbers])

        def conditions(size: Size) -> tuple[Tensor, Tensor | None]:
            latent_size = (size[0] // model.factor, size[1] // model.factor)
            extra, condition = depth_channels(depth, *latent_size), None
            if window.known:
                latents = torch.zeros(len(numbers), model.latent_shape[0], *latent_size)
                views = resize(stack(self.images, [n for n in numbers if n in window.known]), *size)
                latents[known] = model.encode_views(views).float().cpu()
                condition = given_condition(latents, known)
            return extra, condition

        return model.sample_views(
            [self.frames.prompts[n] for n in numbers],
            model.geometry(cameras, depth),
            (cameras.height, cameras.width),
            conditions,
            config.steps,
            config.guidance(9.0),
            config.negative_prompt,
            generator(config.seed, number, "frames"),
            on_step,
            config.eta,
            sync=self.sync(number, known),
        )

    def sync(self, number: int, known: Tensor) -> ViewSync:
        # img2img rounds that make the window consistent with earlier ones; known (F,): frames from earlier windows
        if (synchronise := self.synchronise) is None:
            return NO_SYNC
        numbers = list(self.windows[number].frames)
        before = sorted({n for earlier in self.windows[:number] for n in earlier.frames} - set(numbers))
        cameras = self.frames.cameras.select([*numbers, *before])
        every_known = F.pad(known, (0, len(before)), value=True)

        def consistent(views: Tensor) -> Tensor:
            every = torch.cat([views, stack(self.images, before)]) if before else views
            return synchronise(cameras, every, every_known)[: len(numbers)]

        return ViewSync(self.config.synchronise, consistent)
