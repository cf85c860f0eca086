"""The task "train-prior": autoencoder, text encoder, draft, then the UNet, and the folder that ``prior.weights`` takes.

RUN/autoencoder/    checkpoints and pictures of the first stage, vae.safetensors when it is done
RUN/text/           checkpoints of the second stage, text_encoder.safetensors when it is done
RUN/draft/          checkpoints of the third stage, draft.safetensors when it is done
RUN/latents/        cache of encoded scenes, safe to delete (draft/latents is the draft's)
RUN/checkpoints/    of the last stage
RUN/prior/          the averaged weights so far, a diffusers folder
RUN/samples.png     what they draw
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from threedgen.cli import say
from threedgen.config.errors import ConfigError
from threedgen.data.latents import LatentBank
from threedgen.data.toybox.world import Toybox
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.folder import write_atomic
from threedgen.run.metrics import write_summary
from threedgen.systems.shared import device, existing, finished, seed_networks, writing
from threedgen.systems.train_base import autoencoder
from threedgen.train.loop import Status, fit, set_threads

from . import draft as draft_training
from . import system as prior_training
from . import text as text_training
from .options import TrainPriorConfig

logger = logging.getLogger(__name__)

FILES = ("prior/model_index.json", "samples.png")
"""What a run makes."""


def run(config: TrainPriorConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Train, or go on training, the prior that ``config`` describes; returns the exit code."""
    begun, folder = time.monotonic(), Path(str(config.out))
    if resume and finished(folder, config.trainer.max_steps):
        logger.warning("%s is finished already; its files are as they were", folder)
        say(str(folder / "prior"))
        return Status.FINISHED.exit_code
    set_threads(config.threads)
    if config.start:
        prior = starting_prior(config)
    else:
        vae, status = train_autoencoder(config, folder / "autoencoder", resume, quiet)
        if status is not Status.FINISHED:
            return status.exit_code
        seed_networks(config.seed, "prior")  # whether the first stage ran in this process or an earlier one
        prior = prior_training.build(config.network, vae, config.image_size)
    prior.vae.requires_grad_(False).eval()
    with writing(folder):
        bank = latent_bank(config, prior, folder / "latents")
    if not config.start:
        status = train_text_encoder(config, prior, bank, folder / "text", resume, quiet)
        if status is not Status.FINISHED:
            return status.exit_code
    if not config.start and prior.draft is not None:
        status = train_draft(config, prior, folder / "draft", resume, quiet)
        if status is not Status.FINISHED:
            return status.exit_code
    system = prior_training.PriorSystem(config, prior, bank)
    status = fit(system, config, folder, resume=resume is not None, quiet=quiet, metrics=("loss_3d", "loss_2d"))
    if status in (Status.FINISHED, Status.INTERRUPTED) and system.trainer.is_global_zero:
        system.eval().to(device(config.trainer.accelerator))  # Lightning leaves it on the CPU
        prior.to(system.device)
        with torch.no_grad(), writing(folder):
            system.validate(config.trainer.max_steps, folder)
            write_summary(
                folder, config, time.monotonic() - begun, status=status.value,
                steps=system.trainer.global_step, files=existing(folder, FILES),
            )  # fmt: skip
        say(str(folder / "prior"))
    return status.exit_code


def starting_prior(config: TrainPriorConfig) -> MVDream:
    """The prior to go on from.  Raises ConfigError, also if it draws pictures of another size."""
    prior = MVDream.load(str(config.start))
    if prior.image_size != config.image_size:
        raise ConfigError(
            f"image_size: should be {prior.image_size}, that of the prior to start from (got {config.image_size})"
        )
    return prior


def latent_bank(config: TrainPriorConfig, prior: MVDream, folder: Path) -> LatentBank:
    o = config.training
    return LatentBank(folder, Toybox(config.seed, "train"), prior, o.scenes, o.n_view, o.first_scene)


# --- the stages before the last ------------------------------------------------------------------------------------


def train_autoencoder(
    config: TrainPriorConfig, folder: Path, resume: Path | None, quiet: bool
) -> tuple[AutoencoderKL, Status]:
    """The first stage; a finished one is read from its file."""
    options, done = config.autoencoder, folder / "vae.safetensors"
    torch.manual_seed(config.seed)
    vae = autoencoder.build(options)
    if done.exists() and _filled(vae, done):
        return vae, Status.FINISHED
    system = autoencoder.AutoencoderSystem(options, config.seed, options.max_steps, vae)
    status = _stage(system, config, options.max_steps, folder, resume, quiet, "psnr")
    if status is Status.FINISHED:
        vae = system.vae.cpu().eval()
        _, rgb, _, _ = Toybox(config.seed, "train").batch(range(64), options.image_size, n_view=1)
        autoencoder.standardise(vae, torch.from_numpy(rgb))
        _write(done, vae)
    return system.vae, status


def train_text_encoder(
    config: TrainPriorConfig, prior: MVDream, bank: LatentBank, folder: Path, resume: Path | None, quiet: bool
) -> Status:
    """The second stage, which fills ``prior.text_encoder``; a finished one is read from its file."""
    options, done = config.text, folder / "text_encoder.safetensors"
    if done.exists() and _filled(prior.text_encoder, done):
        return Status.FINISHED
    seed_networks(config.seed, "captions")
    system = text_training.TextSystem(options, config.seed, options.max_steps, prior, bank)
    status = _stage(system, config, options.max_steps, folder, resume, quiet, "matched")
    if status is Status.FINISHED:
        _write(done, prior.text_encoder.cpu())
    return status


def train_draft(
    config: TrainPriorConfig, prior: MVDream, folder: Path, resume: Path | None, quiet: bool
) -> Status:
    """The third stage, which fills ``prior.draft``; a finished one is read from its file."""
    options, done = config.draft, folder / "draft.safetensors"
    assert prior.draft is not None
    if done.exists() and _filled(prior.draft, done):
        return Status.FINISHED
    with writing(folder):
        box = Toybox(config.seed, "train", typical=True)
        bank = LatentBank(folder / "latents", box, prior, options.scenes, n_view=1)
    system = draft_training.DraftSystem(options, config.seed, options.max_steps, prior, bank)
    status = _stage(system, config, options.max_steps, folder, resume, quiet, "draft")
    if status is Status.FINISHED:
        system.average.copy_to(prior.draft)
        _write(done, prior.draft.cpu())
    return status


def _stage(
    system: pl.LightningModule,
    config: TrainPriorConfig,
    max_steps: int,
    folder: Path,
    resume: Path | None,
    quiet: bool,
    metric: str,
) -> Status:
    """Train in a folder of its own, with the trainer of the whole run but for its length."""
    trainer = config.trainer.model_copy(update={"max_steps": max_steps, "val_check_interval": 200})
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    own = config.model_copy(update={"trainer": trainer})
    return fit(system, own, folder, resume=resume is not None, quiet=quiet, metrics=(metric,))


def _write(path: Path, network: nn.Module) -> None:
    with writing(path.parent):
        write_atomic(path, save({k: v.contiguous() for k, v in network.state_dict().items()}))


def _filled(network: nn.Module, path: Path) -> bool:
    """Loads the weights of a finished stage; False if the file is damaged (its checkpoint is still there)."""
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        logger.warning("%s is damaged (%s) and is made again", path, type(error).__name__)
        return False
    return True
