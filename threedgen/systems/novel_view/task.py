"""The task "train-threedim": pairs of views -> a novel-view model, the folder that ``sampler.weights`` takes.

RUN/bank/           cache of the views in the form that the model wants, safe to delete
RUN/checkpoints/
RUN/gap.csv         the gap test by step and noise level: does the model look at its condition?
RUN/samples.png     held-out scenes: the given view, sampled views, the true ones
RUN/model/          the averaged weights so far
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from threedgen.config import ConfigError
from threedgen.data.srn.pairs import PairBank, open_source
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.threedim import folder as folders
from threedgen.guidance.threedim.latents import LatentPairs
from threedgen.guidance.threedim.options import XUNetConfig
from threedgen.guidance.threedim.xunet import XUNet
from threedgen.run.cache import digest
from threedgen.run.disk import writing
from threedgen.run.seeding import seed_networks
from threedgen.train.status import Status
from threedgen.train.task import Task, run_task

from .options import PixelsConfig, TrainThreeDiMConfig
from .system import PairSystem


def train(task: Task) -> Status:
    config: TrainThreeDiMConfig = task.config
    model = build(config)
    with writing(task.folder):
        system = PairSystem(config, model, bank(config, model, task.folder / "bank"))
    return task.train(system, metrics=("gap",), finish=lambda: system.metrics)


def build(config: TrainThreeDiMConfig) -> XUNet | LatentPairs:
    """A fresh network, one that was trained before, or the UNet of a prior. Raises ConfigError."""
    if isinstance(config.model, PixelsConfig):
        if config.model.start is not None:
            return earlier(config.model.start, config.model.network)
        seed_networks(config.seed, "novel views")
        return XUNet(config.model.network)
    return LatentPairs(MVDream.load(config.model.start), config.model.poses)


def earlier(weights: str, network: XUNetConfig) -> XUNet:
    """A trained network to go on from. Raises ConfigError unless it is one on pixels, of the same form and sizes."""
    model, _ = folders.load(weights)
    if not isinstance(model, XUNet):
        raise ConfigError(f"{weights} works on latents, model.name=pixels on pixels", "model.start")
    for name, asked in network:
        found = getattr(model.config, name)
        if found != asked:
            raise ConfigError(f"model.network.{name}: {asked}, but the network of model.start has {found}; set that")
    return model


def bank(config: TrainThreeDiMConfig, model: Any, folder: Path) -> PairBank:
    """The views to train on, encoded if the model works on latents."""
    size = model.image_size[0]
    source = open_source(config.data, size, config.seed)
    encoder = () if isinstance(model, XUNet) else (model.encode_images, f"VAE {digest(model.prior.vae)}")
    return PairBank(folder, source, size, config.data.held_out, *encoder)


run = partial(run_task, train, result="model", files=("model/config.json", "gap.csv", "samples.png"))
