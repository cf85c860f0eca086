"""The task train-mvadapter: trains an adapter with which a frozen 2D model samples several views of an object.

RUN/latents/, half/      caches of encoded views, at full and at half image size, safe to delete
RUN/adapter.safetensors  averaged weights of the adapter; the option `prior.adapter` of other tasks takes this file
RUN/samples.png          true views of held-out objects, above samples

Source: MV-Adapter, arXiv 2412.03632, sections 4 and A.2. All views of an object have the same time step of the shifted
noise schedule. For classifier-free guidance, text, reference image or both are dropped for a fraction of the objects. A
dropped text is replaced by "", and the features of a dropped image by zeros.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import registry
from threedgen.config.errors import ConfigError, errors_name_key
from threedgen.data.latent_cache import LatentCache, choose_by_share, sample_entries
from threedgen.data.object_views import ObjectViews
from threedgen.geometry.views import GREY
from threedgen.guidance.options import Layout
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet, AdapterSettings
from threedgen.guidance.priors.mvadapter.weights import load_adapter, save_adapter
from threedgen.guidance.sampling import REFINE_STRENGTH, check_half_size, check_image_size
from threedgen.guidance.weights.loading import identify
from threedgen.guidance.weights.plugins import locate
from threedgen.run.arrays import Array
from threedgen.run.disk import writing
from threedgen.run.memory import to_device
from threedgen.run.seeding import seed_networks
from threedgen.train.status import Status
from threedgen.train.task import Task, run_task

from .denoising import Batch, DenoisingSystem, Sheet, drop_captions
from .options import AdapterTrainingConfig, TrainMVAdapterConfig

RESULT, SHEET = "adapter.safetensors", "samples.png"
SHEET_OBJECTS, SHEET_STEPS, SHEET_GUIDANCE = 4, 30, 3.0
BLOCK = 4  # number of objects that are rendered and encoded together


def sample_dropouts(rng: np.random.Generator, count: int, shares: tuple[float, float, float]) -> tuple[Array, Array]:
    """Sample for which of `count` training objects the text or the reference image is dropped.

    `shares` are the probabilities of three independent random events per object: the first drops the text, the second
    drops the image, and the third drops both. Returns two bool arrays (count,), True for objects whose text is dropped,
    and for objects whose image is dropped.
    """
    text, image, both = (rng.random(count) < share for share in shares)
    return text | both, image | both


class AdapterSystem(DenoisingSystem):
    """LightningModule that trains the modules that MV-Adapter adds to a frozen UNet.

    In the added attention, a view attends to the other views and to a reference image. Added convolutions encode the
    condition of the views: camera rays or the geometry of a mesh.

    Args:
        model: frozen 2D diffusion model with the adapter.
        network: UNet with the adapter; the network of `model`.
        caches: one pair per image size (full and, if used, half): fraction of the steps with this size, and cached
            latents of the objects at this size.
        objects: training objects.
        held_out: objects for the sample sheet, which are not trained on.
    """

    stage = "adapter"
    options: AdapterTrainingConfig
    model: MVAdapter
    network: AdaptedUNet

    def __init__(
        self,
        config: TrainMVAdapterConfig,
        model: MVAdapter,
        network: AdaptedUNet,
        caches: Sequence[tuple[float, LatentCache]],
        objects: ObjectViews,
        held_out: ObjectViews,
    ) -> None:
        super().__init__(config, model)
        self.config, self.options, self.caches = config, config.training, caches
        self.objects, self.held_out = objects, held_out
        self.parts = network.new_parts
        self.keep_average(self.parts, self.options.ema)
        self.set_unregistered(network=network)

    def batch(self, step: int) -> Batch:
        o, model = self.options, self.model
        rng, gen = self.numpy_rng(step, "choices"), self.rng(step, "diffusion")
        share, cache = choose_by_share(self.caches, self.numpy_rng(step, "size").random())
        available = (self.cache_step(step, share), o.batch, cache.count, o.first, o.fresh)
        chosen = sample_entries(self.numpy_rng(step, "objects"), *available)
        sets = o.view_sets  # the views are the same for all objects of a step
        views = list(sets[rng.integers(len(sets))] if sets else range(len(self.objects.sides)))
        no_text, no_image = sample_dropouts(rng, len(chosen), self.config.dropouts)
        text = model.encode_prompt(drop_captions(cache.captions(chosen), no_text))
        latents, reference = cache.latents(chosen), None
        z = to_device(latents[:, views], self.device)
        t, noise = (x.flatten(0, 1) for x in self.sample_noise(step, z.shape, gen))
        if self.objects.reference:  # the last latents are those of the reference image
            with model.autocast():
                features = self.network.reference_features(to_device(latents[:, -1], self.device), text)
            kept = to_device(torch.from_numpy(~no_image).to(z.dtype), self.device)[:, None, None]
            reference = {name: kept * tensor for name, tensor in features.items()}
        maps = torch.cat([self.objects.maps(int(index), cache.size)[views] for index in chosen])
        condition = {"camera": to_device(maps, self.device), "n_view": len(views), "reference": reference}
        weights = torch.ones(len(t)) if o.snr_gamma is None else model.schedule.min_snr_weight(t, o.snr_gamma)
        text = text.repeat_interleave(len(views), 0)
        return Batch(z.flatten(0, 1), t, noise, text, condition, to_device(weights[:, None, None, None], self.device))

    def save(self, folder: Path) -> None:
        save_adapter(folder / RESULT, self.network)

    def sample_sheet(self) -> Sheet:
        """Return the sample sheet: rows of true views of held-out objects, each above a row of samples.

        If the adapter takes a reference image, column 0 shows it beside the true views and is grey beside the samples.
        """
        size, cells, labels = self.caches[0][1].size, list[Tensor](), list[str]()
        for k in range(SHEET_OBJECTS):
            example = self.held_out.render_examples(range(k, k + 1), size)
            truth, image = torch.from_numpy(example.rgb), None
            reference = blank = torch.zeros(0, size, size, 3)
            if self.held_out.reference:
                truth, image = truth[:-1], truth[-1]
                reference, blank = image[None], torch.full((1, size, size, 3), GREY)
            samples = self.model.sample_views(
                example.captions[0],
                self.held_out.maps(k, size),
                image,
                steps=SHEET_STEPS,
                guidance_scale=SHEET_GUIDANCE,
                negative_prompt="",
                generator=self.rng(k, "sheet"),
            )
            cells += [*reference, *truth, *blank, *samples]
            labels += [example.captions[0]] * 2 * self.held_out.n_view
        return Sheet(cells, self.held_out.n_view, labels)


def train(task: Task) -> Status:
    """Train an adapter on renders of objects, and return the final status of the training.

    Raises ConfigError if the 2D diffusion model, the adapter to start from or the image sizes do not fit together.
    """
    config: TrainMVAdapterConfig = task.config
    task.log_notes()
    with errors_name_key("start"):
        model = MVAdapter.load(config.start, dtype="auto", image_size=config.image_size)
    if model.unet.class_embedding is not None:
        raise ConfigError("is a multi-view model. Choose a 2D model, such as toybox-base", "start", config.start)
    network = add_adapter(config, model)
    task.record_weights({"start": identify(config.start)})

    def source(split: str) -> ObjectViews:
        views = (config.control, "ref" in config.branches, config.anywhere, config.fov)
        return registry.build("object-source", config.objects, config.seed, split, *views)

    objects, half, size = source("train"), config.training.half, model.image_size
    check_half_size((size, size), half or None, model.size_multiple, "training.half")
    model.draft = REFINE_STRENGTH if half else None

    def cache(name: str, size: int) -> LatentCache:
        return LatentCache(task.folder / name, objects, model.vae, size, len(objects), BLOCK)

    with writing(task.folder):
        caches = [(1 - half, cache("latents", size)), *([(half, cache("half", size // 2))] if half else [])]
    system = AdapterSystem(config, model.with_network(network), network, caches, objects, source("held-out"))
    return task.train(system, metrics=("loss",))


def add_adapter(config: TrainMVAdapterConfig, model: MVAdapter) -> AdaptedUNet:
    """Return the UNet of `model` with an adapter: a new one, or the one in the file `config.adapter` if this is set.

    Raises ConfigError if the UNet cannot take the adapter, or for an unsuitable image size.
    """
    o = config
    layout: Layout = "row" if o.control == "rays" else "rowcol"
    settings = AdapterSettings(layout, o.arrangement, o.control, anywhere=o.anywhere, fov=o.fov, timestep=o.timestep)
    if o.adapter is not None:
        network = trained_adapter(o, model, settings)
    else:  # an untrained adapter does not change the output of the UNet
        seed_networks(o.seed, "adapter")
        parts = model.unet, model.factor, settings, o.branches
        try:
            network = AdaptedUNet(*parts, downscale=o.guider_downscale, fine=o.guider_fine)
        except ValueError as error:
            raise ConfigError(f"cannot take an adapter: {error}", "start", o.start) from None
    check_image_size((model.image_size, model.image_size), network.size_multiple, None, ("image_size", "image_size"))
    return network


def trained_adapter(config: TrainMVAdapterConfig, model: MVAdapter, settings: AdapterSettings) -> AdaptedUNet:
    """Add the adapter in the file `config.adapter` to the model's UNet, and return the UNet with the trainable adapter.

    An adapter can have two networks for the condition maps (camera rays or the geometry of a mesh). The condition
    guider computes features for the levels of the UNet, the fine guider only for the output of the UNet's first layer.

    Args:
        config: options of the new training. `branches` (attention to other views, to a reference image) must be those
            of the adapter in the file. So must `guider_downscale` (pixels per feature of the condition guider), unless
            it is None. With `guider_fine`, an adapter with a condition guider but no fine guider gets an untrained
            fine guider. Otherwise the adapter keeps the guiders of the file, which may be none.
        model: 2D model, whose UNet is changed in place.
        settings: settings of the new training, such as the kind of condition maps. They replace those in the file.

    Raises:
        ConfigError: the adapter does not fit the UNet, or has other `branches` or another `guider_downscale`.
    """
    file = locate("adapter", str(config.adapter))
    network = load_adapter(file, model.unet, model.factor, **asdict(settings))
    downscale = network.guider and network.guider.downscale_factor
    for name, found, wanted in (
        ("branches", sorted(network.branches), sorted(config.branches)),
        ("guider_downscale", downscale, config.guider_downscale or downscale),
    ):
        if found != wanted:
            raise ConfigError(f"has {name}={found}, the config has {name}={wanted}", "adapter", config.adapter)
    if config.guider_fine and network.guider is not None and network.fine is None:
        seed_networks(config.seed, "fine guider")
        network.add_fine_guider()
    network.new_parts.requires_grad_(True).train()
    return network


run = partial(run_task, train, result=RESULT, files=(RESULT, SHEET))
