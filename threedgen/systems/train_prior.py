"""The task "train-prior": an autoencoder, then text encoder and UNet, and the folder that ``prior.weights`` takes.

RUN/autoencoder/    checkpoints and pictures of the first stage, vae.safetensors when it is done
RUN/latents/        cache of encoded scenes, safe to delete
RUN/checkpoints/    of the second stage
RUN/prior/          the averaged weights so far, a diffusers folder
RUN/samples.png     what they draw
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file

from threedgen.data.latents import LatentBank
from threedgen.data.toybox.world import Toybox
from threedgen.guidance.mvdream import MVDream
from threedgen.ledger import write_summary
from threedgen.loop import Status, fit, set_threads

from . import autoencoder, prior_training
from .options import TrainPriorConfig

logger = logging.getLogger(__name__)


def run(config: TrainPriorConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Train, or go on training, the prior that ``config`` describes; returns the exit code."""
    begun, folder = time.monotonic(), Path(str(config.out))
    set_threads(config.threads)
    torch.manual_seed(config.seed)
    if config.start:
        prior = MVDream.load(config.start)
    else:
        vae, status = train_autoencoder(config, folder / "autoencoder", resume, quiet)
        if status is not Status.FINISHED:
            return status.exit_code
        prior = prior_training.build(config.network, vae, config.image_size)
    prior.vae.requires_grad_(False).eval()
    training = config.training
    bank = LatentBank(
        folder / "latents",
        Toybox(config.seed, "train"),
        prior,
        training.scenes,
        training.n_view,
        training.first_scene,
    )
    system = prior_training.PriorSystem(config, prior, bank)
    status = fit(
        system, config, folder, resume=resume is not None, quiet=quiet, metrics=("loss_3d", "loss_2d")
    )
    if status in (Status.FINISHED, Status.INTERRUPTED):
        with torch.no_grad():
            system.validate(config.trainer.max_steps, folder)
        write_summary(folder, config, time.monotonic() - begun, status=status.value)
    return status.exit_code


def train_autoencoder(
    config: TrainPriorConfig, folder: Path, resume: Path | None, quiet: bool
) -> tuple[AutoencoderKL, Status]:
    """The first stage; a finished one is read from its file."""
    options, done = config.autoencoder, folder / "vae.safetensors"
    if done.exists():
        vae = autoencoder.build(options)
        vae.load_state_dict(load_file(done))
        return vae, Status.FINISHED
    stage = config.model_copy(
        update={
            "trainer": config.trainer.model_copy(
                update={"max_steps": options.max_steps, "val_check_interval": 200}
            )
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    system = autoencoder.AutoencoderSystem(options, config.seed, options.max_steps)
    status = fit(system, stage, folder, resume=resume is not None, quiet=quiet, metrics=("psnr",))
    if status is Status.FINISHED:
        vae = system.vae.cpu().eval()
        autoencoder.standardise(vae, Toybox(config.seed, "train"), options.image_size)
        save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, done)
    return system.vae, status
