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

from pathlib import Path

import torch

from threedgen.config.errors import ConfigError
from threedgen.data.latents import LatentBank
from threedgen.data.toybox.world import Toybox
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.folder import writing
from threedgen.run.seeding import seed_networks
from threedgen.systems.train_base import autoencoder
from threedgen.train.loop import Status
from threedgen.train.system import System
from threedgen.train.task import Task, run_task

from . import system as prior_training
from .draft import DraftSystem
from .options import TrainPriorConfig
from .text import TextSystem

FILES = ("prior/model_index.json", "samples.png")
"""What a run makes."""


def run(config: TrainPriorConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Train, or go on training, the prior that ``config`` describes; returns the exit code."""
    return run_task(train, config, resume, quiet, result="prior", files=FILES)


def train(task: Task) -> Status:
    """The stages, one after the other; a prior to start from is through with all but the last."""
    config: TrainPriorConfig = task.config
    prior = starting_prior(config) if config.start else new_prior(task)
    prior.vae.requires_grad_(False).eval()
    with writing(task.folder):
        bank = latent_bank(config, prior, task.folder / "latents")
    if not config.start:
        train_text_encoder(task, prior, bank)
        if prior.draft is not None:
            train_draft(task, prior)
    return task.train(prior_training.PriorSystem(config, prior, bank), metrics=("loss_3d", "loss_2d"))


def starting_prior(config: TrainPriorConfig) -> MVDream:
    """The prior to go on from.  Raises ConfigError, also if it draws pictures of another size."""
    prior = MVDream.load(str(config.start))
    if prior.image_size != config.image_size:
        raise ConfigError(
            f"should be {prior.image_size}, that of the prior to start from (got {config.image_size})", "image_size"
        )
    return prior


def latent_bank(config: TrainPriorConfig, prior: MVDream, folder: Path) -> LatentBank:
    o = config.training
    return LatentBank(folder, Toybox(config.seed, "train"), prior, o.scenes, o.n_view, o.first_scene)


# --- the stages before the last ------------------------------------------------------------------------------------


def new_prior(task: Task) -> MVDream:
    """The first stage, the autoencoder, and random networks around it."""
    config: TrainPriorConfig = task.config
    options = config.autoencoder
    torch.manual_seed(config.seed)
    vae = autoencoder.build(options)

    def system() -> System:
        return autoencoder.AutoencoderSystem(options, config.seed, options.max_steps, vae)

    def standardise(learner: System) -> None:
        _, rgb, _, _ = Toybox(config.seed, "train").batch(range(64), options.image_size, n_view=1)
        autoencoder.standardise(vae, torch.from_numpy(rgb))

    task.stage("autoencoder", vae, system, "psnr", standardise, "vae.safetensors")
    seed_networks(config.seed, "prior")  # whether the first stage ran in this process or an earlier one
    return prior_training.build(config.network, vae, config.image_size)


def train_text_encoder(task: Task, prior: MVDream, bank: LatentBank) -> None:
    """The second stage, which fills ``prior.text_encoder``."""
    config: TrainPriorConfig = task.config

    def system() -> System:
        seed_networks(config.seed, "captions")
        return TextSystem(config.text, config.seed, config.text.max_steps, prior, bank)

    task.stage("text", prior.text_encoder, system, "matched", file="text_encoder.safetensors")


def train_draft(task: Task, prior: MVDream) -> None:
    """The third stage, which fills ``prior.draft`` with the average of its weights."""
    config: TrainPriorConfig = task.config
    options, draft = config.draft, prior.draft
    assert draft is not None

    def system() -> DraftSystem:
        box = Toybox(config.seed, "train", typical=True)
        bank = LatentBank(task.folder / "draft" / "latents", box, prior, options.scenes, n_view=1)
        return DraftSystem(options, config.seed, options.max_steps, prior, bank)

    task.stage("draft", draft, system, "draft", lambda learner: learner.average.copy_to(draft))
