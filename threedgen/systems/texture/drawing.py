"""Draws the frames of a scene: key frames together, then those between them from two key frames (MVDiffusion,
section 4.2). A frame that is drawn is a file, and is not drawn again."""

from __future__ import annotations

import hashlib
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
from threedgen.geometry.images import write_png
from threedgen.geometry.picture_file import load_image
from threedgen.geometry.views import resize
from threedgen.guidance.coarse_to_fine import NO_SYNC, Size, ViewSync, total_steps
from threedgen.guidance.mvdiffusion.inputs import depth_channels, given_condition
from threedgen.guidance.mvdiffusion.model import MVDiffusion
from threedgen.run.disk import write_atomic, writing
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.run.seeding import generator
from threedgen.run.workers import Stopped
from threedgen.train.status import Status

from .options import TextureConfig
from .shots import Shots

logger = logging.getLogger(__name__)

Agree = Callable[[Cameras, Tensor, Tensor], Tensor]
"""Of cameras, their frames (F,H,W,3) and which of them are given (F,): the frames, brought to agree."""


@dataclass(frozen=True)
class Draw:
    """Frames that are drawn together, in the order of the path, and which of them are given, drawn before."""

    frames: tuple[int, ...]
    given: tuple[int, ...] = ()

    @property
    def new(self) -> tuple[int, ...]:
        return tuple(n for n in self.frames if n not in self.given)


def plan(keys: Sequence[int], config: TextureConfig) -> list[Draw]:
    """What is drawn, in this order: windows of key frames, each sharing some with the one before, then what is between
    two key frames, given both."""
    together, shared = config.views, config.shared
    last = max(0, len(keys) - together)
    starts = [*range(0, last, together - shared), last]
    draws, done = list[Draw](), set[int]()
    for start in starts:
        window = tuple(keys[start : start + together])
        draws.append(Draw(window, tuple(n for n in window if n in done)))
        done |= set(window)
    between = [(one, other) for one, other in zip(keys, keys[1:], strict=False) if other - one > 1]
    if not config.interpolate or not between:
        return draws
    most = together - 2 or 1
    for one, other in between:
        for start in range(one + 1, other, most):
            draws.append(Draw((one, *range(start, min(start + most, other)), other), (one, other)))
    return draws


def check_model(model: MVDiffusion, config: TextureConfig) -> None:
    """Raises ConfigError for a model that is not told depth, and frames that it cannot draw."""
    if model.extra != "depth" or model.multiview is not None and model.multiview.kind != "depth":
        raise ConfigError(
            "these weights are not told how far things are; take those of a depth model, such as what "
            "train-mvdiffusion leaves with variant=depth",
            "prior.blocks",
        )
    model.check_size((config.height, config.width), ("height", "width"))


class Pictures:
    """The frames on the disk, uint8 (H,W,3) each: those of other shots or of another model than ``source`` tells are
    taken away."""

    def __init__(self, folder: Path, shots: Shots, source: str) -> None:
        self.folder, self.shots, made_of = folder, shots, folder / "source.txt"
        with writing(folder):
            if folder.exists() and (not made_of.is_file() or made_of.read_text() != source):
                logger.warning("%s holds frames of other inputs; they are drawn again", folder)
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(made_of, source)

    def path(self, n: int) -> Path:
        return self.folder / f"{self.shots.names[n]}.png"

    def get(self, n: int) -> np.ndarray | None:
        """A frame; None if it is not there or damaged."""
        with suppress(ConfigError):
            found = np.asarray(load_image(self.path(n)).convert("RGB"))
            if found.shape == (self.shots.cameras.height, self.shots.cameras.width, 3):
                return found
        return None

    def stack(self, frames: Sequence[int]) -> Tensor:
        """Frames (N,H,W,3) in [0,1], that are there: as they are in the files, so that a run that goes on sees what it
        would have seen."""
        found = [self.get(n) for n in frames]
        return torch.from_numpy(np.stack([picture for picture in found if picture is not None])).float() / 255


def source(shots: Shots, keys: Sequence[int], weights: Mapping[str, str]) -> str:
    """What decides the frames, beside the config.  weights: SHA-256s by their keys."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (shots.depth, shots.cameras.c2w, shots.cameras.K):
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(repr((shots.prompts, shots.names, list(keys), weights)).encode())
    return digest.hexdigest() + "\n"


@dataclass(frozen=True)
class Painter:
    """Draws the frames of a scene.  agree: brings frames to agree, as often as ``config.synchronise`` says; None: they
    are as they are drawn."""

    model: MVDiffusion
    config: TextureConfig
    shots: Shots
    draws: Sequence[Draw]
    pictures: Pictures
    agree: Agree | None = None

    def draw_all(self, quiet: bool) -> None:
        """Draws what is not there yet. At Ctrl-C what is finished is kept: raises Stopped."""
        draws, pictures = self.draws, self.pictures
        waiting = [n for n, draw in enumerate(draws) if any(pictures.get(frame) is None for frame in draw.new)]
        steps, total = total_steps(self.config.steps, self.model.draft, self.config.synchronise), len(draws)
        with (
            Interrupts() as interrupts,
            Count("drawing", total * steps, quiet, done=(total - len(waiting)) * steps) as count,
        ):
            for number in waiting:
                draw = draws[number]
                what = "frames between" if draw.given == (draw.frames[0], draw.frames[-1]) else "key frames"

                def on_step(what: str = what) -> None:
                    if interrupts.stop:
                        raise Stopped(Status.INTERRUPTED.exit_code)
                    count.add(1, what)

                try:
                    drawn = self.draw(number, on_step)
                except Stopped:
                    logger.warning(
                        "%s keeps the frames that are drawn; the same command goes on from them", pictures.folder
                    )
                    raise
                with writing(pictures.folder):
                    for frame in draw.new:
                        write_png(pictures.path(frame), drawn[draw.frames.index(frame)])

    def draw(self, number: int, on_step: Callable[[], None]) -> Tensor:
        """Samples the frames of a draw (F,H,W,3), the given ones too."""
        draw, shots, config, model = self.draws[number], self.shots, self.config, self.model
        frames = list(draw.frames)
        at, depth = shots.cameras.select(frames), shots.depth[frames]
        given = torch.tensor([n in draw.given for n in frames])

        def known(size: Size) -> tuple[Tensor, Tensor | None]:
            small = (size[0] // model.factor, size[1] // model.factor)
            extra, condition = depth_channels(depth, *small), None
            if draw.given:
                latents = torch.zeros(len(frames), model.latent_shape[0], *small)
                views = resize(self.pictures.stack([n for n in frames if n in draw.given]), *size)
                latents[given] = model.encode_views(views).float().cpu()
                condition = given_condition(latents, given)
            return extra, condition

        return model.sample_views(
            [shots.prompts[n] for n in frames],
            model.geometry(at, depth, config.prior),
            (at.height, at.width),
            known,
            config.steps,
            config.guidance_scale,
            config.negative_prompt,
            generator(config.seed, number, "frames"),
            on_step,
            config.eta,
            sync=self.synchronised(number, given),
        )

    def synchronised(self, number: int, given: Tensor) -> ViewSync:
        """How the frames of a draw, some of them ``given`` (F,), agree: what was drawn before decides, also what the
        others show."""
        if (agree := self.agree) is None:
            return NO_SYNC
        frames = list(self.draws[number].frames)
        before = sorted({n for earlier in self.draws[:number] for n in earlier.frames} - set(frames))
        cameras, decided = self.shots.cameras.select([*frames, *before]), F.pad(given, (0, len(before)), value=True)

        def agreed(views: Tensor) -> Tensor:
            every = torch.cat([views, self.pictures.stack(before)]) if before else views
            return agree(cameras, every, decided)[: len(frames)]

        return ViewSync(self.config.synchronise, agreed)
