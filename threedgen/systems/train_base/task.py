"""The task "train-base": autoencoder, text encoder, then the UNet of single pictures, and the folder of all three.

RUN/autoencoder/    checkpoints and pictures of the first stage, vae.safetensors when it is done
RUN/words/          checkpoints of the second stage, words.safetensors when it is done
RUN/latents/        cache of encoded pictures, safe to delete
RUN/checkpoints/    of the last stage
RUN/base/           the averaged weights so far, a diffusers folder
RUN/samples.png     what they draw
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from threedgen.data.bank import LatentBank
from threedgen.data.toybox.pictures import Photographs
from threedgen.data.toybox.words import train_tokenizer
from threedgen.run.folder import writing
from threedgen.run.seeding import seed_networks
from threedgen.systems.train_base import autoencoder
from threedgen.train.loop import Status
from threedgen.train.system import System
from threedgen.train.task import Task, run_task

from . import system as unets
from .options import TrainBaseConfig


def train(task: Task) -> Status:
    """The three stages, one after the other."""
    config: TrainBaseConfig = task.config
    torch.manual_seed(config.seed)
    options = config.autoencoder
    vae = autoencoder.build(options)
    learner = autoencoder.AutoencoderSystem(options, config.seed, options.max_steps, vae)
    source = Photographs(config.seed, "train")

    def standardise(_: System) -> None:
        rgb = source.block(range(64), config.image_size).rgb  # objects and rooms together
        autoencoder.standardise(vae, torch.from_numpy(rgb))

    task.stage("autoencoder", vae, lambda: learner, "psnr", standardise)
    vae.requires_grad_(False).eval()

    with writing(task.folder):
        bank = LatentBank(task.folder / "latents", source, vae, config.image_size, config.training.pictures)
    seed_networks(config.seed, "captions")
    tokenizer = train_tokenizer(config.network.max_tokens)
    text = unets.text_encoder(config.network, tokenizer)
    words = unets.WordsSystem(config.words, config.seed, config.words.max_steps, text, tokenizer, bank)
    networks = nn.ModuleDict({"text_encoder": text, "tower": words.tower})
    task.stage("words", networks, lambda: words, "matched")
    text.requires_grad_(False).eval()

    seed_networks(config.seed, "UNet")
    prior = unets.build(config.network, vae, text, tokenizer, config.image_size)
    return task.train(unets.BaseSystem(config, prior, bank), metrics=("loss_2d",))


run = partial(run_task, train, result="base", files=("base/model_index.json", "samples.png"))
