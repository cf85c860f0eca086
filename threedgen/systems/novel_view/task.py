"""The task "train-threedim": pairs of views -> a novel-view model, the folder that ``sampler.weights`` takes.

RUN/bank/           cache of the views in the form that the model wants, safe to delete
RUN/checkpoints/
RUN/gap.csv         the gap test by step and noise level: does the model look at its condition?
RUN/samples.png     held-out scenes: the given view, sampled views, the true ones
RUN/model/          the averaged weights so far
"""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import torch

from threedgen.cli import say
from threedgen.config import ConfigError
from threedgen.data.srn.pairs import PairBank, open_source
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.threedim import folder as folders
from threedgen.guidance.threedim.latents import LatentPairs
from threedgen.guidance.threedim.options import XUNetConfig
from threedgen.guidance.threedim.xunet import XUNet
from threedgen.run.metrics import write_summary
from threedgen.systems.shared import device, existing, finished, seed_networks, writing
from threedgen.train.loop import Status, fit, set_threads

from .options import PixelsConfig, TrainThreeDiMConfig
from .system import PairSystem

logger = logging.getLogger(__name__)

FILES = ("model/config.json", "gap.csv", "samples.png")
"""What a run makes."""


def run(config: TrainThreeDiMConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Train, or go on training, the model that ``config`` describes; returns the exit code. Raises ConfigError."""
    begun, folder = time.monotonic(), Path(str(config.out))
    if resume and finished(folder, config.trainer.max_steps):
        logger.warning("%s is finished already; its files are as they were", folder)
        say(str(folder / "model"))
        return Status.FINISHED.exit_code
    set_threads(config.threads)
    model = build(config)
    with writing(folder):
        system = PairSystem(config, model, bank(config, model, folder / "bank"))
    status = fit(system, config, folder, resume=resume is not None, quiet=quiet, metrics=("gap",))
    if status in (Status.FINISHED, Status.INTERRUPTED) and system.trainer.is_global_zero:
        system.eval().to(device(config.trainer.accelerator))  # Lightning leaves it on the CPU
        with torch.no_grad(), writing(folder):
            system.validate(system.trainer.global_step, folder)
            write_summary(
                folder, config, time.monotonic() - begun, status=status.value, steps=system.trainer.global_step,
                files=existing(folder, FILES), **system.metrics,
            )  # fmt: skip
        say(str(folder / "model"))
    return status.exit_code


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
        raise ConfigError(f"model.start: {weights} works on latents, model.name=pixels on pixels")
    for name, wanted in network:
        found = getattr(model.config, name)
        if found != wanted:
            raise ConfigError(f"model.network.{name}: {wanted}, but the network of model.start has {found}; set that")
    return model


def bank(config: TrainThreeDiMConfig, model: Any, folder: Path) -> PairBank:
    """The views to train on, encoded if the model works on latents."""
    size = model.picture_size[0]
    source = open_source(config.data, size, config.seed)
    if isinstance(model, XUNet):
        return PairBank(folder, source, size, config.data.held_out)
    weights = hashlib.blake2b(digest_size=16)
    for _, tensor in sorted(model.prior.vae.state_dict().items()):
        weights.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return PairBank(folder, source, size, config.data.held_out, model.from_pictures, f"VAE {weights.hexdigest()}")
