"""Carries out the task "train-identity": trains the network that tells toybox subjects apart.

RUN/checkpoints/
RUN/identity/toybox-identity.*      the network, and beside it its own ROC on fresh subjects

Each step shows two pictures each of several subjects of several kinds, from any side. The loss asks of every picture
which of the others is of its subject (Khosla et al. 2020, "Supervised contrastive learning", with one positive):

    loss = - mean_i log( exp(e_i e_p(i) / T) / sum_{j != i} exp(e_i e_j / T) )
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.data.toybox.subjects import draw, kinds, views
from threedgen.evaluation.toybox.identity import NAME, IdentityNet, pairs, roc
from threedgen.evaluation.toybox.options import TrainIdentityConfig
from threedgen.run.dtypes import mixed
from threedgen.train.loop import Status
from threedgen.train.system import System
from threedgen.train.task import Task, run_task

from .train_probe import augment

logger = logging.getLogger(__name__)

FRESH = 1_000_003
"""Added to the seed for the subjects that it is measured on: none of them was ever trained on."""
PICTURES = 5
"""Of each of these."""


RESULT = f"identity/{NAME}.safetensors"


def run(config: TrainIdentityConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Train, or go on training; returns the exit code."""
    return run_task(train, config, resume, quiet, result=RESULT, files=(RESULT,))


def train(task: Task) -> Status:
    config: TrainIdentityConfig = task.config
    torch.manual_seed(config.seed)
    system = IdentitySystem(config)

    def finish() -> dict[str, Any]:
        net = system.net.cpu()
        figures = measure(net, config.measured, config.training.alike, config.seed + FRESH)
        net.save(task.folder / RESULT, {"roc": figures, "steps": system.trainer.global_step, "seed": config.seed})
        if not task.quiet:
            logger.warning("area under the ROC %.3f, subjects of one kind", figures["area"])
        return {"roc": figures}

    return task.train(system, metrics=("right",), finish=finish, partial=False)


@torch.no_grad()
def measure(net: IdentityNet, count: int, alike: int, seed: int) -> dict[str, float]:
    """Measures its ROC on fresh subjects, ``alike`` of each of ``count`` kinds: same subject or another of its kind."""
    rng, every = np.random.default_rng([seed, *b"measure"]), kinds()
    vectors, subject, kind = [], [], []
    for k in range(count):
        for number in range(alike):
            asset = draw(seed, k * alike + number, every[k % len(every)].word)
            azimuth, elevation = rng.uniform(0, 2 * np.pi, PICTURES), np.deg2rad(rng.uniform(0, 30, PICTURES))
            rgb = views(asset, azimuth, elevation, net.options.image_size)
            vectors.append(net(torch.from_numpy(rgb).permute(0, 3, 1, 2)))
            subject += [k * alike + number] * PICTURES
            kind += [k] * PICTURES
    found = roc(*pairs(torch.cat(vectors), np.array(subject), np.array(kind)))
    return asdict(found)


def contrastive(vectors: Tensor, temperature: float) -> tuple[Tensor, float]:
    """Computes the loss of unit vectors (2 N, D), pictures 2 k and 2 k + 1 of one subject, and the share right."""
    alike = vectors @ vectors.T / temperature
    alike = alike.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), -torch.inf)
    partner = torch.arange(len(vectors), device=vectors.device) ^ 1
    return F.cross_entropy(alike, partner), float((alike.argmax(1) == partner).float().mean())


class IdentitySystem(System):
    """Trains an IdentityNet; what a step sees depends on its number only."""

    stage = "identity"

    def __init__(self, config: TrainIdentityConfig) -> None:
        super().__init__(config)
        self.options = config.training
        self.net = IdentityNet(config.network)

    def pictures(self, step: int) -> Tensor:
        """Renders (2 kinds alike, 3, S, S): two sides each of subjects that no other step shows."""
        o, size = self.options, self.net.options.image_size
        rng, every = self.numpy_rng(step, "subjects"), kinds()
        chosen = rng.permutation(len(every))[: o.kinds]
        seed, shown = int(rng.integers(2**31)), []
        for k in chosen:
            for number in range(o.alike):
                azimuth, elevation = rng.uniform(0, 2 * np.pi, 2), np.deg2rad(rng.uniform(0, 30, 2))
                shown.append(views(draw(seed, number, every[int(k)].word), azimuth, elevation, size))
        return torch.from_numpy(np.concatenate(shown)).permute(0, 3, 1, 2)

    def training_step(self, batch: int, index: int) -> Tensor:
        rng = self.rng(int(batch), "augment")
        x = augment(self.pictures(int(batch)), rng, self.options.augment).to(self.device)
        with mixed(self.device, self.options.bf16):
            vectors = self.net(x)
        loss, right = contrastive(vectors, self.options.temperature)
        self.metrics = {"right": right}
        return loss

    def configure_optimizers(self) -> Any:
        o = self.options
        return self.adamw(self.net.parameters(), o.learning_rate, weight_decay=o.weight_decay)
