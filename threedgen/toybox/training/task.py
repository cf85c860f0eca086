"""Tasks that train priors (image generators): train-base and train-prior on toybox renders, train-own-prior on meshes.

train-base makes a 2D model, which generates single images. The other two make a multi-view prior, which generates views
of one object, from a 2D model or from a multi-view prior. Each task trains its UNet last.

train-base, networks in the order of their training, each with checkpoints and weights:
    RUN/autoencoder/, decoder/        the VAE; then its decoder again, on noisy latents
    RUN/words/                        the text encoder
train-prior, networks that propose latents to the UNet (`coarse_systems`):
    RUN/coarse/, codes/, fusion/      the coarse predictor, its sampler of object codes, its view fusion
    RUN/coded/, typical/              caches of encoded views of objects, the second with little variation
train-own-prior, from the meshes of the user:
    RUN/views/, assets.csv, sheet.png    renders of the meshes, list of the meshes, contact sheet of the renders
all tasks:
    RUN/latents/, objects/            caches of encoded images for the UNet: single images, views of objects
    RUN/latents-half/, objects-half/  the same at half size, if `training.half` is above 0; not in train-own-prior
    RUN/checkpoints/                  checkpoints of the UNet
    RUN/base/ or RUN/prior/           the 2D model, or the multi-view prior, in diffusers format, averaged weights
    RUN/samples.png                   samples of the result, for train-own-prior beside renders of held-out meshes
"""

import hashlib
from functools import lru_cache, partial

import torch
from diffusers.models import AutoencoderKL
from torch import nn

from threedgen.config.errors import ConfigError, errors_default_to_key, errors_name_key
from threedgen.config.plain_file import read_json
from threedgen.data.assets.listing import INDEX, SHARDS
from threedgen.data.assets.make import render
from threedgen.data.assets.shards import Shards
from threedgen.data.assets.source import AssetViews, CaptionedImages, split
from threedgen.data.latent_cache import ExampleSource, LatentCache
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.coarse_volume import COARSEST
from threedgen.guidance.priors.from_options import load_prior
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.sampling import REFINE_STRENGTH
from threedgen.guidance.weights.loading import identify
from threedgen.guidance.weights.saving import check_savable
from threedgen.run.disk import writing
from threedgen.run.folder import CHECKPOINTS, restore_keys, user_path
from threedgen.run.options import is_rank_zero
from threedgen.run.seeding import generator, seed_networks
from threedgen.run.text import say
from threedgen.toybox.data.pictures import Photographs, ViewRings
from threedgen.toybox.world.open_toybox import OpenToybox
from threedgen.toybox.world.toybox import Toybox, View
from threedgen.train.checkpoint import CONFIG_KEY
from threedgen.train.checkpoint_file import latest
from threedgen.train.status import Status
from threedgen.train.task import Task, device, run_task

from . import autoencoder, text_encoder
from .coarse_systems import SOURCES, TARGETS, CoarseSystem, CodedObjects, CodeSystem, FusionSystem, PredictorSystem
from .networks import base_model, multiview_model, widen, with_camera
from .options import CoarseConfig, TrainBaseConfig, TrainOwnPriorConfig, TrainPriorConfig
from .system import OwnPriorSystem, PriorSystem, objects_of

FUSION_CHANNELS = 32
"""Channels of the view fusion (a network that refines coarse predictions) at the full size of the latents."""
SCATTERED = 0.5
"""Training of the coarse predictor: share of objects whose cameras are sampled independently, not evenly spaced."""
TYPICAL, TYPICAL_SHARE, ACCESSORIES = 0.3, 0.75, 0.5
"""Training of the coarse predictor: factor on the random variation of typical objects, share of the steps that train on
these, and share of them that wear an accessory for certain; the other objects have the full variation. The code sampler
is trained on typical objects only."""


def train_base(task: Task) -> Status:
    config: TrainBaseConfig = task.config
    torch.manual_seed(config.seed)
    o = config.training
    source = Photographs(config.seed, "train", o.variation, o.rooms, o.clutter, o.style)
    if config.start is None:
        prior = train_networks(task, source)
    else:
        prior = load_start(task, config.start, config.image_size)
        if config.widen is not None:
            prior.unet = widen(prior.unet, config.widen, generator(config.seed, 0, "wider"))
    return task.train(PriorSystem(config, prior, *latent_caches(task, prior, "latents", source)), metrics=("loss_2d",))


def load_start(task: Task, start: str, image_size: int | None = None) -> LatentDiffusion:
    """Load the 2D model or multi-view prior that a training starts from, and record its weight files in `task`.

    `start` is the name or folder of the weights. `image_size` is the side of the images to train on, in pixels; None:
    the size on which the UNet was trained. Another size is possible, because no weight depends on it. Raises
    ConfigError if the weights are missing or damaged, if the size does not fit the networks, or if the trained model
    could not be saved (SDXL).
    """
    prior = LatentDiffusion.load(start, image_size=image_size)
    with errors_default_to_key("start"):
        check_savable(prior)
    task.record_weights({"start": identify(start)})
    return prior


def latent_caches(
    task: Task, prior: LatentDiffusion, name: str, source: ExampleSource, share: float = 1.0
) -> list[tuple[float, LatentCache]]:
    """Create the disk caches of latents of a source. Return pairs (share of all training steps, cache).

    There is a cache for images of full size, and one for images of half the size. With h, the config option
    `training.half`, the share of the first is `share` * (1 - h), and that of the second `share` * h. A cache with the
    share 0 is left out.

    Args:
        prior: model whose VAE encodes the images, and whose image size is the full size.
        name: folder of the full-size cache in the run folder; the other folder is NAME-half.
        source: source of the images.
        share: share of all training steps that use the source.
    """
    half, size = task.config.training.half, prior.image_size
    with errors_name_key("training.half"):
        prior.with_draft(REFINE_STRENGTH if half else None)
    sizes = [(share * (1 - half), name, size), (share * half, f"{name}-half", size // 2)]
    return [(part, latent_cache(task, folder, source, prior.vae, side)) for part, folder, side in sizes if part]


def latent_cache(
    task: Task, name: str, source: ExampleSource, vae: AutoencoderKL, size: int, **layout: int
) -> LatentCache:
    count = objects_of(task.config.training.pictures, source.n_view)
    with writing(task.folder):
        return LatentCache(task.folder / name, source, vae, size, count, **layout)


def train_networks(task: Task, source: ExampleSource) -> LatentDiffusion:
    """Train a VAE, then its decoder again on noisy latents, then a text encoder on captions and images of `source`.

    VAE and decoder are trained on new toybox renders, not on `source`; after the first training, images of `source`
    standardise the latents of the VAE (mean 0, variance 1). Return a 2D model (generator of single images) with these
    networks and an untrained UNet. Networks that an earlier process of the run has finished are loaded.
    """
    config: TrainBaseConfig = task.config
    seed, size, vae = config.seed, config.image_size, autoencoder.build(config.autoencoder)

    def standardise() -> None:
        rgb = source.render_examples(range(64), size).rgb  # objects and rooms
        autoencoder.standardise(vae, torch.from_numpy(rgb))

    system = autoencoder.AutoencoderSystem(config.autoencoder, size, seed, vae)
    task.train_network("autoencoder", vae, system, "psnr", standardise)
    decoder = autoencoder.DecoderSystem(config.decoder.max_steps, config.autoencoder, size, seed, vae)
    task.train_network("decoder", vae.decoder, decoder, "psnr")
    vae.requires_grad_(False).eval()

    seed_networks(seed, "captions")
    tokenizer = text_encoder.train_tokenizer()
    text = text_encoder.build(tokenizer)
    latents = latent_cache(task, "latents", source, vae, size)
    words = text_encoder.TextEncoderSystem(config.words, seed, text, tokenizer, latents)
    networks = nn.ModuleDict({"text_encoder": text, "tower": words.tower})
    task.train_network("words", networks, words, "matched")
    text.requires_grad_(False).eval()

    seed_networks(seed, "UNet")
    return base_model(config.network.channels, vae, text, tokenizer, size)


def train_prior(task: Task) -> Status:
    config: TrainPriorConfig = task.config
    seed, o = config.seed, config.training
    base = load_start(task, config.start)
    coarse = base.coarse if config.coarse is None else train_coarse(task, base, config.coarse)
    seed_networks(seed, "camera")
    prior = multiview_model(base, coarse)
    view = View(fov=config.fov_range, relative_distance=config.distance_range)
    if config.open_captions:
        world: Toybox = OpenToybox(seed, "train", view, o.variation, config.scattered, config.accessories)
    else:
        world = Toybox(seed, "train", view, o.variation)
    parts = [
        *latent_caches(task, prior, "latents", Photographs(seed, "train"), o.two_d),
        *latent_caches(task, prior, "objects", ViewRings(world, o.n_view), 1 - o.two_d),
    ]
    return task.train(PriorSystem(config, prior, *parts), metrics=("loss_3d", "loss_2d"))


def train_coarse(task: Task, base: LatentDiffusion, o: CoarseConfig) -> CoarsePredictor:
    """Train the coarse predictor, its sampler of object codes and its view fusion, one after the other.

    From caption, camera and object code (a vector of what the caption leaves unspecified), the coarse predictor
    computes latents in one step. They become an input of the UNet of the prior that is trained later. The view fusion
    corrects the predictions with the noisy latents of all views. Networks that an earlier process of the run has
    finished are loaded.

    Args:
        base: model whose VAE and text encoder are used. If it has a coarse predictor, this is trained further.
        o: options of the training. `o.volume` adds feature volumes to the predictor: 3D grids of features of the
            object, which are rendered for each camera. Its value is a sequence with the number of channels of each
            volume, from coarse to fine. The coarsest volume has 4 cells per side, each next one twice as many; the
            finest must have as many cells per side as the latents have pixels. None: add no volumes.

    Returns:
        The frozen coarse predictor, which contains the sampler and, if there is one, the view fusion. Trained networks
        have the moving averages of their weights.

    Raises:
        ConfigError: if the number of volumes in `o.volume` does not fit the size of the latents, or if `base` has no
            coarse predictor and `o` has 0 steps for the predictor or its sampler.
    """
    for key in ("max_steps", "sampler_steps"):
        if base.coarse is None and not getattr(o, key):
            raise ConfigError("should be at least 1, as start has no coarse predictor", f"coarse.{key}", 0)
    seed = task.config.seed
    seed_networks(seed, "coarse")
    channels, side, _ = base.latent_shape
    coarse = base.coarse or CoarsePredictor(base.text_shape[1], channels, side)
    if o.volume is not None:
        if COARSEST * 2 ** (len(o.volume) - 1) != side:
            problem = f"should have a number for each side from {COARSEST} to {side}"
            raise ConfigError(problem, "coarse.volume", o.volume)
        coarse.add_volume(o.volume)
    if o.fusion_steps:
        coarse.add_fusion(FUSION_CHANNELS)  # before the stages, so that a resumed run has the same first weights

    def coded(folder: str, variation: float, accessories: float = 0.0) -> CodedObjects:
        """Return `o.objects` toybox objects to train the coarse predictor on, with a disk cache in RUN/`folder`.

        The cache has the latents (images encoded by the VAE) and cameras of six views of each object. `variation`, in
        [0, 1], is the factor on the random variation of the objects. The share `accessories` of the objects has at
        least one accessory, such as a hat; of the others about one in eight has one. RUN is the run folder.
        """
        world = OpenToybox(seed, "train", variation=variation, scattered=SCATTERED, accessories=accessories)
        source = ViewRings(world, SOURCES + TARGETS)
        with writing(task.folder):
            cache = LatentCache(task.folder / folder, source, base.vae, base.image_size, o.objects)
        weights = lru_cache(o.objects)(partial(source.part_weights, size=coarse.config["size"]))
        return CodedObjects(cache, world.caption, weights)

    varied, typical = coded("coded", 1.0), coded("typical", TYPICAL, ACCESSORIES)

    def train(name: str, network: nn.Module, system: PredictorSystem, metric: str) -> None:
        task.train_network(name, network, system, metric, lambda: network.load_state_dict(system.average.weights()))

    parts = [(TYPICAL_SHARE, typical), (1 - TYPICAL_SHARE, varied)]
    if o.max_steps:
        train("coarse", coarse, CoarseSystem(o, seed, coarse, base, parts), "coarse")
    if o.sampler_steps:
        train("codes", coarse.sampler, CodeSystem(o, seed, coarse, base, typical), "code")
    if coarse.fusion is not None and o.fusion_steps:
        train("fusion", coarse.fusion, FusionSystem(o, seed, coarse, base, parts), "fusion")
    return coarse.requires_grad_(False).eval()


run_base = partial(run_task, train_base, result="base", files=("base/model_index.json", "samples.png"))
run_prior = partial(run_task, train_prior, result="prior", files=("prior/model_index.json", "samples.png"))


BLOCK = 8  # number of examples of user assets that are encoded together
MAX_SHOWN = 8


def train_own(task: Task) -> Status:
    config: TrainOwnPriorConfig = task.config
    o, seed = config.training, config.seed
    task.log_notes()
    found = latest(task.folder / CHECKPOINTS) if config.rendered is None else None
    index = read_json(task.folder / SHARDS / INDEX)
    if found and index.get("shards"):  # before `render` changes the shards
        trained_assets = {asset["name"] for shard in index["shards"] for asset in shard["assets"]}
        listed = {asset.name for asset in config.listing().assets if asset.file not in index.get("left_out", {})}
        if trained_assets != listed:
            restore_keys(task.folder, config, found[1].get(CONFIG_KEY, ""), config.movable_inputs)
            raise ConfigError("has other meshes than this run. Use the same files, or another output folder", "data")
    shards = render(config, task.folder, task.quiet) if config.rendered is None else Shards(config.rendered)
    if config.rendered is None and not task.quiet and is_rank_zero():
        say(f"contact sheet of the assets: {task.folder / 'sheet.png'}")
    prior = load_own_start(config)
    task.record_weights(config.prior.identify(), "prior.")
    names = "\n".join(sorted(entry.name for entry in shards.entries))  # pixels may differ if rendered elsewhere
    task.weights["data"] = hashlib.sha256(names.encode()).hexdigest()
    trained = split(shards, config.held_out, "train")
    single: ExampleSource = AssetViews(shards, trained, seed, 1)
    if config.pictures is not None:
        with errors_name_key("pictures"):
            single = CaptionedImages(user_path(config.pictures, "pictures"))
    several = AssetViews(shards, trained, seed, o.n_view)
    held_out = split(shards, config.held_out, "held-out")[:MAX_SHOWN]
    shown = AssetViews(shards, held_out, seed, o.n_view) if held_out else None

    def cache(name: str, source: ExampleSource) -> LatentCache:
        return latent_cache(task, name, source, prior.vae, prior.image_size, block=BLOCK)

    parts = (o.two_d, cache("latents", single)), (1 - o.two_d, cache("objects", several))
    system = OwnPriorSystem(config, prior, shown, *parts)

    def figures() -> dict[str, float]:
        return {name: float(value) for name, value in system.metrics.items() if name == "fid"}

    return task.train(system, metrics=("loss_3d", "loss_2d", "fid"), finish=figures)


def load_own_start(config: TrainOwnPriorConfig) -> MVDream:
    """Load the prior (diffusion model) of the config as a multi-view prior, to train it further.

    A 2D model (generates single images) becomes a multi-view prior by a new camera embedding of its UNet, which has no
    effect before training. Raises ConfigError if the weights are missing or damaged, or those of another kind of model,
    such as SDXL.
    """
    with errors_name_key("prior.weights"):
        prior: LatentDiffusion = load_prior(LatentDiffusion, config.prior, device(config.trainer.accelerator))
    with errors_default_to_key("prior.weights"):
        check_savable(prior)
    if prior.unet.class_embedding is None:
        seed_networks(config.seed, "camera")
    parts = with_camera(prior.unet), prior.vae, prior.text_encoder, prior.tokenizer, prior.schedule, prior.coarse
    found = MVDream(*parts, image_size=prior.image_size, dtype=prior.precision, device=prior.device)
    if found.coarse is not None:  # it was not trained on these assets
        found.coarse.register_to_config(starts_samples=False)
    if config.training.gradient_checkpointing:
        found.unet.enable_gradient_checkpointing()
    return found


run_own = partial(run_task, train_own, result="prior", files=("prior/model_index.json", "samples.png"))
