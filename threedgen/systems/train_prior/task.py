"""The tasks "train-base" and "train-prior": the 2D model of the toybox from nothing, and the multi-view prior from it.

RUN/autoencoder/    (train-base) checkpoints and pictures of the first stage, autoencoder.safetensors when it is done
RUN/decoder/        (train-base) the same of the second stage, decoder.safetensors
RUN/words/          (train-base) checkpoints of the third stage, words.safetensors when it is done
RUN/coarse/         (train-prior) the same of its first stage, coarse.safetensors
RUN/latents/        cache of encoded pictures, safe to delete (objects/, typical/: of views; *-half/: of half the size)
RUN/checkpoints/    of the last stage
RUN/base/, prior/   the averaged weights so far, a diffusers folder
RUN/samples.png     what they draw
"""

from __future__ import annotations

from functools import partial

import torch
from diffusers.models import AutoencoderKL
from torch import nn

from threedgen.config.errors import called
from threedgen.data.bank import LatentBank, Source
from threedgen.data.toybox.captions import OpenToybox
from threedgen.data.toybox.pictures import FourSides, Photographs
from threedgen.data.toybox.words import train_tokenizer
from threedgen.data.toybox.world import Toybox, View
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.coarse_to_fine import REFINE_STRENGTH
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.guidance.weights.loading import identify
from threedgen.run.disk import writing
from threedgen.run.seeding import generator, seed_networks
from threedgen.train.status import Status
from threedgen.train.task import Task, run_task

from . import autoencoder
from .coarse import CoarseSystem
from .options import CoarseConfig, TrainBaseConfig, TrainPriorConfig
from .system import DiffusionSystem, base_model, multiview_model, whole
from .wider import wider
from .words import WordsSystem, text_encoder


def train_base(task: Task) -> Status:
    """The four stages, one after the other; or the last one, of a model that there is."""
    config: TrainBaseConfig = task.config
    torch.manual_seed(config.seed)
    o = config.training
    source = Photographs(config.seed, "train", o.luck, o.rooms, o.clutter, o.style)
    if config.start is not None:
        prior = StableDiffusion.load(config.start, image_size=config.image_size)
        task.name_weights({"start": identify(config.start)})
        if config.widen is not None:
            prior.unet = wider(prior.unet, config.widen, generator(config.seed, 0, "wider"))
    else:
        prior = new_base(task, source)
    return task.train(DiffusionSystem(config, prior, *banks(task, prior, "latents", source)), metrics=("loss_2d",))


def banks(
    task: Task, prior: LatentDiffusion, name: str, source: Source, share: float = 1.0
) -> list[tuple[float, LatentBank]]:
    """Pictures for a share of the steps, in their size, and where ``training.half`` says so in half of it too."""
    half, size = task.config.training.half, prior.image_size
    with called("training.half"):
        prior.with_draft(REFINE_STRENGTH if half else None)
    sizes = {name: (1 - half, size), f"{name}-half": (half, size // 2)}
    return [
        (share * part, bank(task, folder, source, prior.vae, side))
        for folder, (part, side) in sizes.items()
        if share * part
    ]


def bank(task: Task, name: str, source: Source, vae: AutoencoderKL, size: int) -> LatentBank:
    """Pictures of a size, whose latents are kept in a folder of this name."""
    count = whole(task.config.training.pictures, source.n_view)
    with writing(task.folder):
        return LatentBank(task.folder / name, source, vae, size, count)


def new_base(task: Task, source: Source) -> StableDiffusion:
    """Trains all but the UNet of a 2D model, or reads what is trained already."""
    config: TrainBaseConfig = task.config
    vae = autoencoder.build(config.autoencoder)
    learner = autoencoder.AutoencoderSystem(config.autoencoder, config.seed, vae)

    def standardise() -> None:
        rgb = source.block(range(64), config.image_size).rgb  # objects and rooms together
        autoencoder.standardise(vae, torch.from_numpy(rgb))

    task.stage("autoencoder", vae, learner, "psnr", standardise)
    decoder = autoencoder.DecoderSystem(config.decoder, config.autoencoder, config.seed, vae)
    task.stage("decoder", vae.decoder, decoder, "psnr")
    vae.requires_grad_(False).eval()

    seed_networks(config.seed, "captions")
    tokenizer = train_tokenizer(config.network.max_tokens)
    text = text_encoder(config.network, tokenizer)
    seen = bank(task, "latents", source, vae, config.image_size)
    words = WordsSystem(config.words, config.seed, text, tokenizer, seen)
    networks = nn.ModuleDict({"text_encoder": text, "tower": words.tower})
    task.stage("words", networks, words, "matched")
    text.requires_grad_(False).eval()

    seed_networks(config.seed, "UNet")
    return base_model(config.network, vae, text, tokenizer, config.image_size)


def train_prior(task: Task) -> Status:
    """Trains a coarse predictor, if there is to be one, then the UNet of a 2D model to draw several views with it; or
    both on, of a prior."""
    config: TrainPriorConfig = task.config
    base = StableDiffusion.load(config.start)
    task.name_weights({"start": identify(config.start)})
    seed, o = config.seed, config.training
    if config.widen is not None:
        base.unet = wider(base.unet, config.widen, generator(seed, 0, "wider"))
    coarse = base.coarse if config.coarse is None else train_coarse(task, base, config.coarse)
    seed_networks(seed, "camera")
    prior = multiview_model(base, coarse, config.attention, config.rotary)
    view = View(fov=config.fov_range, relative_distance=config.distance_range)
    world = (
        OpenToybox(seed, "train", view, o.luck, config.scattered)
        if config.open_captions
        else Toybox(seed, "train", view, o.luck)
    )
    objects = FourSides(world, o.n_view)
    parts = [
        *banks(task, prior, "latents", Photographs(seed, "train"), o.two_d),
        *banks(task, prior, "objects", objects, 1 - o.two_d),
    ]
    return task.train(DiffusionSystem(config, prior, *parts), metrics=("loss_3d", "loss_2d"))


def train_coarse(task: Task, base: LatentDiffusion, o: CoarseConfig) -> CoarsePredictor:
    """Trains the first stage; returns the average of what was learnt."""
    seed = task.config.seed
    seed_networks(seed, "coarse")
    channels, side, _ = base.latent_shape
    coarse = base.coarse or CoarsePredictor(base.text_shape[1], channels, side)
    source = FourSides(Toybox(seed, "train", variation=0), 1)
    with writing(task.folder):
        bank = LatentBank(task.folder / "typical", source, base.vae, base.image_size, o.pictures)
    learner = CoarseSystem(o, seed, coarse, base, bank)
    task.stage("coarse", coarse, learner, "coarse", lambda: coarse.load_state_dict(learner.average.weights()))
    return coarse.requires_grad_(False).eval()


run_base = partial(run_task, train_base, result="base", files=("base/model_index.json", "samples.png"))
run_prior = partial(run_task, train_prior, result="prior", files=("prior/model_index.json", "samples.png"))
