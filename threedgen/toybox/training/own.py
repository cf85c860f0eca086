"""The task train-own-prior: trains a multi-view prior on user assets.

RUN/views/, assets.csv, sheet.png    renders of the assets, their list, and a contact sheet to check the renders
RUN/objects/, latents/               caches of encoded views and of encoded single images, safe to delete
RUN/checkpoints/
RUN/prior/                           averaged weights in diffusers format; the option `prior.weights` takes this folder
RUN/samples.png                      held-out assets, and samples of their captions from the same cameras
"""

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
from threedgen.run.options import is_rank_zero
from threedgen.run.seeding import seed_networks
from threedgen.run.text import say
from threedgen.train.status import Status
from threedgen.train.task import Task, device, run_task

from .networks import with_camera
from .options import TrainOwnPriorConfig
from .system import OwnPriorSystem

TEXT_BYTES, BLOCK = 400, 8
"""Bytes stored per caption; number of entries that are encoded together."""
MAX_SHOWN = 8
"""Maximum number of assets on the sample sheet."""


def train(task: Task) -> Status:
    """Render the assets, unless the config names rendered ones, and train the prior on the renders."""
    config: TrainOwnPriorConfig = task.config
    o, seed = config.training, config.seed
    shards = render_assets(task) if config.rendered is None else Shards(config.rendered)
    prior = load_start(config)
    task.name_weights(config.prior.identify(), "prior.")
    trained = split(shards, config.held_out, "train")
    single: Source = AssetViews(shards, trained, seed, 1)
    if config.pictures is not None:
        with called("pictures"):
            single = CaptionedImages(user_path(config.pictures, "pictures"))
    several = AssetViews(shards, trained, seed, o.n_view)
    held_out = split(shards, config.held_out, "held-out")[:MAX_SHOWN]
    shown = AssetViews(shards, held_out, seed, o.n_view) if held_out else None

    def bank(name: str, source: Source) -> LatentBank:
        folder, count = task.folder / name, o.pictures // source.n_view
        return LatentBank(folder, source, prior.vae, prior.image_size, count, block=BLOCK, text=TEXT_BYTES)

    with writing(task.folder):
        parts = (o.two_d, bank("latents", single)), (1 - o.two_d, bank("objects", several))
    system = OwnPriorSystem(config, prior, shown, *parts)

    def figures() -> dict[str, float]:
        return {name: value for name, value in system.metrics.items() if name == "fid"}

    return task.train(system, metrics=("loss_3d", "loss_2d", "fid"), finish=figures)


def render_assets(task: Task) -> Shards:
    """Render the assets into the run folder, and return the rendered views."""
    shards = render(task.config, task.folder, task.quiet)
    if not task.quiet and is_rank_zero():
        say(f"contact sheet of the assets: {task.folder / 'sheet.png'}")
    return shards


def load_start(config: TrainOwnPriorConfig) -> MVDream:
    """Load the prior to train; a 2D model gets a camera branch without effect on the output. Raises ConfigError."""
    with called("prior.weights"):
        prior: StableDiffusion = load_prior(StableDiffusion, config.prior, device(config.trainer.accelerator))
    if prior.unet.class_embedding is None:
        seed_networks(config.seed, "camera")
    parts = with_camera(prior.unet), prior.vae, prior.text_encoder, prior.tokenizer, prior.schedule, prior.coarse
    found = MVDream(*parts, prior.second, image_size=prior.image_size, dtype=prior.precision, device=prior.device)
    if found.coarse is not None:  # it was not trained on these assets
        found.coarse.register_to_config(starts_samples=False)
    if config.training.gradient_checkpointing:
        found.unet.enable_gradient_checkpointing()
    return found


run = partial(run_task, train, result="prior", files=("prior/model_index.json", "samples.png"))
