"""The task "train-base": autoencoder, text encoder, then the UNet of single pictures, and the folder of all three.

RUN/autoencoder/    checkpoints and pictures of the first stage, vae.safetensors when it is done
RUN/words/          checkpoints of the second stage, words.safetensors when it is done
RUN/latents/        cache of encoded pictures, safe to delete
RUN/checkpoints/    of the last stage
RUN/base/           the averaged weights so far, a diffusers folder
RUN/samples.png     what they draw
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from threedgen.cli import say
from threedgen.data.bank import LatentBank
from threedgen.data.toybox.pictures import Photographs
from threedgen.data.toybox.words import train_tokenizer
from threedgen.run.folder import write_atomic
from threedgen.run.metrics import write_summary
from threedgen.systems.shared import device, existing, finished, seed_networks, writing
from threedgen.systems.train_base import autoencoder
from threedgen.train.loop import Status, fit, set_threads

from . import system as unets
from .options import TrainBaseConfig
from .words import WordsSystem

logger = logging.getLogger(__name__)

FILES = ("base/model_index.json", "samples.png")
"""What a run makes."""


def run(config: TrainBaseConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Train, or go on training, the model that ``config`` describes; returns the exit code."""
    begun, folder = time.monotonic(), Path(str(config.out))
    if resume and finished(folder, config.trainer.max_steps):
        logger.warning("%s is finished already; its files are as they were", folder)
        say(str(folder / "base"))
        return Status.FINISHED.exit_code
    set_threads(config.threads)
    stage = Stage(config, folder, resume, quiet)

    torch.manual_seed(config.seed)
    vae = autoencoder.build(config.autoencoder)
    learner = autoencoder.AutoencoderSystem(config.autoencoder, config.seed, config.autoencoder.max_steps, vae)
    status = stage("autoencoder", learner, vae, "psnr", lambda: settle(vae, config))
    if status is not Status.FINISHED:
        return status.exit_code
    vae.requires_grad_(False).eval()

    with writing(folder):
        source = Photographs(config.seed, "train")
        bank = LatentBank(folder / "latents", source, vae, config.image_size, config.training.pictures)
    seed_networks(config.seed, "captions")
    tokenizer = train_tokenizer(config.network.max_tokens)
    text = unets.text_encoder(config.network, tokenizer)
    words = WordsSystem(config.words, config.seed, config.words.max_steps, text, tokenizer, bank)
    status = stage("words", words, nn.ModuleDict({"text_encoder": text, "tower": words.tower}), "matched")
    if status is not Status.FINISHED:
        return status.exit_code
    text.requires_grad_(False).eval()

    seed_networks(config.seed, "UNet")
    prior = unets.build(config.network, vae, text, tokenizer, config.image_size)
    system = unets.BaseSystem(config, prior, bank)
    status = fit(system, config, folder, resume=resume is not None, quiet=quiet, metrics=("loss_2d",))
    if status in (Status.FINISHED, Status.INTERRUPTED) and system.trainer.is_global_zero:
        system.eval().to(device(config.trainer.accelerator))  # Lightning leaves it on the CPU
        prior.to(system.device)
        with torch.no_grad(), writing(folder):
            system.validate(config.trainer.max_steps, folder)
            write_summary(
                folder, config, time.monotonic() - begun, status=status.value,
                steps=system.trainer.global_step, files=existing(folder, FILES),
            )  # fmt: skip
        say(str(folder / "base"))
    return status.exit_code


def settle(vae: nn.Module, config: TrainBaseConfig) -> None:
    """What is done to a trained autoencoder: its latents become standard normal, objects and rooms together."""
    source = Photographs(config.seed, "train")
    rgb = source.block(range(64), config.image_size).rgb
    autoencoder.standardise(vae, torch.from_numpy(rgb))


class Stage:
    """Trains a part of the model in a folder of its own, or reads it from there."""

    def __init__(self, config: TrainBaseConfig, folder: Path, resume: Path | None, quiet: bool) -> None:
        self.config, self.folder, self.resume, self.quiet = config, folder, resume, quiet

    def __call__(self, name: str, system: pl.LightningModule, made: nn.Module, metric: str, settle=None) -> Status:
        """``made``: the networks that are kept, in NAME/NAME.safetensors; ``settle`` is called when they are trained."""
        folder, config = self.folder / name, self.config
        done = folder / f"{name}.safetensors"
        if done.exists() and filled(made, done):
            return Status.FINISHED
        trainer = config.trainer.model_copy(update={"max_steps": system.max_steps, "val_check_interval": 200})
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        own = config.model_copy(update={"trainer": trainer})
        resume = self.resume is not None
        status = fit(system, own, folder, resume=resume, quiet=self.quiet, metrics=(metric,))
        if status is Status.FINISHED:
            made.cpu().eval()
            if settle is not None:
                settle()
            with writing(folder):
                write_atomic(done, save({k: v.contiguous() for k, v in made.state_dict().items()}))
        return status


def filled(network: nn.Module, path: Path) -> bool:
    """Loads the weights of a finished stage; False if the file is damaged (its checkpoint is still there)."""
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        logger.warning("%s is damaged (%s) and is made again", path, type(error).__name__)
        return False
    return True
