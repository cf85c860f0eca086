"""The task "train-matte": the network by which an object is told from what is behind it in a prior's pictures.

It learns from true renders, whose opacity is known, as the prior's decoder would paint them from latents that are a
little wrong.

RUN/pictures/       cache of pictures, safe to delete
RUN/matte/          the network: a folder that ``fit.matte`` takes
RUN/summary.json    how well it tells the opacity of fresh pictures
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.data.bank import BLOCK, encode, sample_entries
from threedgen.data.toybox.raycast import render
from threedgen.data.toybox.world import Split, Toybox, jumble
from threedgen.geometry.images import to_uint8
from threedgen.guidance.matte import Matte
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.run.arrays import Array
from threedgen.run.cache import BlockCache, digest
from threedgen.run.disk import writing
from threedgen.run.dtypes import autocast_bf16
from threedgen.run.seeding import numpy_generator, seed_networks
from threedgen.train.status import Status
from threedgen.train.system import System
from threedgen.train.task import Task, run_task

from .options import TrainMatteConfig

TINT, CAST, NOISE = 0.04, 0.015, 0.01
"""Deviations of the brightness of a picture, of its channels and of its pixels, by which no two sights are equal."""


class Pictures:
    """Pictures 0 ... ``count`` - 1 with their opacity, uint8 (N, S, S, 4), made when they are wanted first."""

    def __init__(
        self, folder: Path, prior: LatentDiffusion, count: int, config: TrainMatteConfig, split: Split = "train"
    ) -> None:
        self.options, self.size, self.prior = config.training, config.network.size, prior
        self.seed, self.box = config.seed, Toybox(config.seed, split)
        how = f"{self.size} px, jumbles {self.options.jumbles}, noise {self.options.latent_noise}"
        told = f"{self.box.describe()}\n{how}\n{digest(prior.vae)}"
        self.kept = BlockCache(folder, "pictures", count, (self.size, self.size, 4), np.uint8, told, BLOCK)

    def __call__(self, indices: Array) -> Tensor:
        """(N, S, S, 4) in [0, 1]"""
        for block in self.kept.missing_blocks(indices):
            self.kept.store(block, self.made(range(block * BLOCK, (block + 1) * BLOCK)))
        return torch.from_numpy(np.stack([self.kept[i] for i in indices])).float() / 255

    def made(self, indices: range) -> Array:
        """A block, each picture from a side of its own."""
        rng = numpy_generator(self.seed, indices.start, "matte")
        assets = [jumble(rng, i) if rng.random() < self.options.jumbles else self.box.asset(i) for i in indices]
        c2w, fov, _, grey = zip(*(self.box.cameras(i, 1) for i in indices), strict=True)
        scene = (assets, np.arange(len(assets)), np.concatenate(c2w), np.concatenate(fov), self.size)
        black, white = (render(*scene, background).rgb for background in (0.0, 1.0))
        opacity = 1 - (white - black).mean(-1, keepdims=True)
        rgb = self.painted(black + (1 - opacity) * np.reshape(grey, (-1, 1, 1, 1)), rng)
        return to_uint8(np.concatenate([rgb, opacity], -1))

    @torch.no_grad()
    def painted(self, rgb: Array, rng: np.random.Generator) -> Array:
        """What the decoder makes of latents with some noise."""
        z = encode(self.prior.vae, torch.from_numpy(rgb).float())
        noise = self.options.latent_noise * rng.random((len(z), 1, 1, 1)) * rng.standard_normal(z.shape)
        return self.prior.decode_latents(z + torch.from_numpy(noise).to(z)).float().cpu().numpy()


class MatteSystem(System):
    """Trains a ``Matte``."""

    stage = "matte"
    shown: Pictures

    def __init__(self, config: TrainMatteConfig, pictures: Pictures) -> None:
        super().__init__(config)
        seed_networks(config.seed, "matte")
        self.options, self.net = config.training, Matte(**config.network.model_dump())
        self.set_unregistered(shown=pictures)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o = int(batch), self.options
        rng = self.numpy_rng(step, "pictures")
        rgba = self.shown(sample_entries(rng, step, o.batch, o.pictures, o.first, o.fresh)).permute(0, 3, 1, 2)
        x, opacity = self.varied(rgba[:, :3], self.rng(step, "variation")).to(self.device), rgba[:, 3].to(self.device)
        with autocast_bf16(self.device, o.bf16):
            logits = self.net(x)
        loss = F.binary_cross_entropy_with_logits(logits, opacity)
        self.metrics = {"wrong": float((logits.detach().sigmoid() - opacity).abs().mean())}
        return loss

    @staticmethod
    def varied(x: Tensor, rng: torch.Generator) -> Tensor:
        """Pictures (B, 3, S, S) a little brighter or darker, tinted and noisy."""
        count = len(x)
        bright = torch.exp(TINT * torch.randn(count, 1, 1, 1, generator=rng))
        cast = CAST * torch.randn(count, 3, 1, 1, generator=rng)
        return (x * bright + cast + NOISE * torch.randn(x.shape, generator=rng)).clamp(0, 1)


@torch.no_grad()
def measured(net: Matte, pictures: Pictures, count: int) -> dict[str, float]:
    """Mean error of the opacity of ``count`` pictures, and how far their outlines overlap (intersection over union)."""
    rgba = pictures(np.arange(count))
    found, truth = net.opacity(rgba[..., :3].to(net.out.weight.device)).cpu(), rgba[..., 3]
    here, there = found > 0.5, truth > 0.5
    return {"error": float((found - truth).abs().mean()), "iou": float((here & there).sum() / (here | there).sum())}


def train(task: Task) -> Status:
    config: TrainMatteConfig = task.config
    prior = StableDiffusion.load(config.autoencoder, image_size=config.network.size)
    with writing(task.folder):
        system = MatteSystem(config, Pictures(task.folder / "pictures", prior, config.training.pictures, config))

    def finish() -> dict[str, Any]:
        system.net.save(task.folder / "matte")
        fresh = Pictures(task.folder / "fresh", prior, config.measured, config, "held-out")
        return {"matte": measured(system.net, fresh, config.measured)}

    return task.train(system, metrics=("wrong",), finish=finish)


run = partial(run_task, train, result="matte", files=("matte/config.json",))
"""Trains, or goes on training, a matte."""
