"""The task "train-own-prior": a multi-view prior learns users' own assets, by MVDream's training.

RUN/views/, assets.csv, sheet.png    what was read and rendered (``threedgen.data.assets.make``): look at the sheet
RUN/objects/, latents/               cache of encoded views and of single pictures, safe to delete
RUN/checkpoints/
RUN/prior/                           the averaged weights so far, a diffusers folder: `prior.weights=` of all tasks
RUN/samples.png                      held-out assets, and what they draw of their captions from the same cameras
"""

from __future__ import annotations

from functools import partial

from threedgen.config.errors import called
from threedgen.data.assets.make import render
from threedgen.data.assets.shards import Shards
from threedgen.data.assets.source import AssetViews, CaptionedImages, split
from threedgen.data.bank import LatentBank, Source
from threedgen.guidance.priors.latent_diffusion import load_prior
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.run.disk import writing
from threedgen.run.folder import user_path
from threedgen.run.ranks import is_rank_zero
from threedgen.run.seeding import seed_networks
from threedgen.run.text import say
from threedgen.systems.train_prior.system import with_camera
from threedgen.train.status import Status
from threedgen.train.task import Task, device, run_task

from .options import TrainOwnPriorConfig
from .system import OwnPriorSystem

TEXT, TOGETHER, SHOWN = 400, 8, 8
"""Bytes kept of a caption; entries that are encoded together; assets on the sample sheet at most."""


def train(task: Task) -> Status:
    """Renders, if that is not done, and trains. Raises ConfigError, Stopped."""
    config: TrainOwnPriorConfig = task.config
    o, seed, aloud = config.training, config.seed, not task.quiet and is_rank_zero()
    if config.rendered is None:
        shards = render(config, task.folder, task.quiet)
        if aloud:
            say(f"what was read: {task.folder / 'sheet.png'}")
    else:
        shards = Shards(config.rendered)
    prior = begin(config)
    task.name_weights(config.prior.identify(), "prior.")
    learnt = split(shards, config.held_out, "train")
    single: Source = AssetViews(shards, learnt, seed, 1)
    if config.pictures is not None:
        with called("pictures"):
            single = CaptionedImages(user_path(config.pictures, "pictures"))

    several = AssetViews(shards, learnt, seed, o.n_view)
    shown = split(shards, config.held_out, "held-out")[:SHOWN]
    return learn(task, prior, single, several, AssetViews(shards, shown, seed, o.n_view) if shown else None)


def learn(task: Task, prior: MVDream, single: Source, several: Source, shown: AssetViews | None) -> Status:
    """Trains a prior on single pictures and on several views of objects. ``shown``: others, for the sample sheet."""
    config: TrainOwnPriorConfig = task.config

    def bank(name: str, source: Source) -> LatentBank:
        count = config.training.pictures // source.n_view
        return LatentBank(task.folder / name, source, prior.vae, prior.image_size, count, block=TOGETHER, text=TEXT)

    with writing(task.folder):
        pictures, objects = bank("latents", single), bank("objects", several)
    two_d = config.training.two_d
    system = OwnPriorSystem(config, prior, shown, (two_d, pictures), (1 - two_d, objects))

    def last() -> dict[str, float]:
        return {name: value for name, value in system.metrics.items() if name == "fid"}

    return task.train(system, metrics=("loss_3d", "loss_2d", "fid"), finish=last)


def begin(config: TrainOwnPriorConfig) -> MVDream:
    """The prior to begin with; a 2D model gets a camera branch that says nothing yet. Raises ConfigError."""
    with called("prior.weights"):
        base = load_prior(StableDiffusion, config.prior, device(config.trainer.accelerator))
    unet = base.unet
    if unet.class_embedding is None:
        seed_networks(config.seed, "camera")
        unet = with_camera(unet)
    parts = unet, base.vae, base.text_encoder, base.tokenizer, base.schedule, base.coarse, base.second
    prior = MVDream(*parts, image_size=base.image_size, dtype=base.precision, device=base.device)
    if prior.coarse is not None:  # it goes on predicting what it learnt from
        prior.coarse.register_to_config(starts_samples=False)
    if config.training.gradient_checkpointing:
        prior.unet.enable_gradient_checkpointing()
    return prior


run = partial(run_task, train, result="prior", files=("prior/model_index.json", "samples.png"))
