"""The task train-mvadapter: trains an adapter with which a frozen 2D model samples several views of an object.

RUN/latents/, half/      caches of encoded views, at full and at half size, safe to delete
RUN/checkpoints/
RUN/adapter.safetensors  averaged weights of the adapter; the option `prior.adapter` of other tasks takes this file
RUN/samples.png          true views of held-out objects, above samples

Source: MV-Adapter, arXiv 2412.03632, sections 4 and A.2. All views of an object have the same time step, on the shifted
noise schedule. For classifier-free guidance, text, reference image or both are dropped for a share of the objects. The
features of a dropped image are replaced by zeros.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import registry
from threedgen.config.errors import ConfigError, called
from threedgen.data.bank import LatentBank, choose_by_share, sample_entries
from threedgen.data.object_views import ObjectViews
from threedgen.guidance.coarse_to_fine import REFINE_STRENGTH, check_half_size, check_image_size
from threedgen.guidance.guidance import Features
from threedgen.guidance.priors.mvadapter.form import Form
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet
from threedgen.guidance.priors.mvadapter.pictures import GREY
from threedgen.guidance.priors.mvadapter.weights import load_adapter, save_adapter
from threedgen.guidance.weights.loading import identify
from threedgen.guidance.weights.plugins import locate
from threedgen.run.arrays import Array
from threedgen.run.disk import writing
from threedgen.run.seeding import seed_networks
from threedgen.train.status import Status
from threedgen.train.task import Task, run_task

from .denoising import Batch, DenoisingSystem, Sheet, drop_captions
from .options import AdapterTrainingConfig, TrainMVAdapterConfig

RESULT = "adapter.safetensors"


def sample_dropouts(rng: np.random.Generator, count: int, shares: tuple[float, float, float]) -> tuple[Array, Array]:
    """Sample the dropped conditions of `count` objects: bool (count,) for the text, and bool (count,) for the image.

    Args:
        shares: probabilities of three independent events: text dropped, image dropped, both dropped.
    """
    text, image, both = (rng.random(count) < share for share in shares)
    return text | both, image | both


class AdapterSystem(DenoisingSystem):
    """LightningModule that trains the modules that MV-Adapter adds to a frozen UNet.

    Args:
        network: UNet with the adapter; the network of `model`.
        banks: pairs of a share of the steps and cached latents of the objects. The bank at the model's image size is
            first; a second one is at half size.
        objects: training objects.
        held_out: objects of the sample sheet.
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
        banks: Sequence[tuple[float, LatentBank]],
        objects: ObjectViews,
        held_out: ObjectViews,
    ) -> None:
        super().__init__(config, model)
        self.config, self.options, self.banks = config, config.training, banks
        self.objects, self.held_out = objects, held_out
        self.parts = network.new_parts
        self.keep_average(self.parts, self.options.ema)
        self.set_unregistered(network=network)

    def batch(self, step: int) -> Batch:
        o, model = self.options, self.model
        rng, gen = self.numpy_rng(step, "choices"), self.rng(step, "diffusion")
        share, bank = choose_by_share(self.banks, self.numpy_rng(step, "size").random())
        available = (int(step * share), o.batch, bank.count, o.first, o.fresh)
        chosen = sample_entries(self.numpy_rng(step, "objects"), *available)
        views = self.sample_views(rng)
        no_text, no_image = sample_dropouts(rng, len(chosen), self.config.dropouts)
        text = model.encode_prompt(drop_captions(bank.captions(chosen), no_text))
        latents = bank.latents(chosen).to(self.device)
        z = latents[:, views]
        t, noise = (x.flatten(0, 1) for x in self.sample_noise(step, z.shape, gen))
        reference = self.reference_features(latents[:, -1], text, no_image) if self.objects.reference else None
        maps = torch.cat([self.objects.maps(int(index), bank.size)[views] for index in chosen]).to(self.device)
        condition = {"camera": maps, "n_view": len(views), "reference": reference}
        weights = torch.ones(len(t)) if o.snr_gamma is None else model.schedule.min_snr_weight(t, o.snr_gamma)
        text = text.repeat_interleave(len(views), 0)
        return Batch(z.flatten(0, 1), t, noise, text, condition, weights.to(self.device))

    def sample_views(self, rng: np.random.Generator) -> list[int]:
        """Sample the indices of the views that a step trains on; they are the same for all objects of the step."""
        sets = self.options.view_sets
        return list(sets[rng.integers(len(sets))]) if sets else list(range(len(self.objects.sides)))

    def reference_features(self, latents: Tensor, text: Tensor, dropped: Array) -> Features:
        """Return the UNet's features of n reference images, by layer.

        Args:
            latents, text: (n, C, h, w) and (n, L, D) of the images.
            dropped: (n,) bool; where True, all features are 0.
        """
        with self.model.autocast():
            features = self.network.reference_features(latents, text)
        kept = torch.from_numpy(~dropped).to(latents)[:, None, None]
        return {name: kept * tensor for name, tensor in features.items()}

    def save(self, folder: Path) -> None:
        save_adapter(folder / RESULT, self.network)

    def sample_sheet(self) -> Sheet:
        """Return rows with the true views of held-out objects, each above a row of samples.

        Adapters with a reference image have it in the first column.
        """
        o, size = self.options, self.banks[0][1].size
        cells, labels = list[Tensor](), list[str]()
        for k in range(o.sheet_objects):
            entry = self.held_out.block(range(k, k + 1), size)
            truth, image = torch.from_numpy(entry.rgb), None
            reference = blank = torch.zeros(0, size, size, 3)
            if self.held_out.reference:
                truth, image = truth[:-1], truth[-1]
                reference, blank = image[None], torch.full((1, size, size, 3), GREY)
            samples = self.model.sample_views(
                entry.captions[0],
                self.held_out.maps(k, size),
                image,
                steps=o.sheet_steps,
                guidance_scale=o.guidance_scale,
                negative_prompt="",
                generator=self.rng(k, "sheet"),
            )
            cells += [*reference, *truth, *blank, *samples]
            labels += [entry.captions[0]] * 2 * self.held_out.n_view
        return Sheet(cells, self.held_out.n_view, labels)


BLOCK, TEXT_BYTES = 4, 240
"""Number of objects that are rendered and encoded together; bytes stored per caption."""


def train(task: Task) -> Status:
    """Train the adapter of a config, with cached latents at full and possibly half size. Raises ConfigError."""
    config: TrainMVAdapterConfig = task.config
    model = load_base(config)
    network = add_adapter(config, model)
    task.name_weights({"start": identify(config.start)})

    def source(split: str) -> ObjectViews:
        o = config
        views = (o.control, "ref" in o.branches, o.anywhere, o.fov)
        built: ObjectViews = registry.build("object-source", o.objects, o.seed, split, *views)
        return built

    objects, half, size = source("train"), config.training.half, model.image_size
    check_half_size((size, size), half or None, model.unit, "training.half")
    model.draft = REFINE_STRENGTH if half else None
    with writing(task.folder):
        banks = [
            (
                share,
                LatentBank(task.folder / name, objects, model.vae, side, len(objects), block=BLOCK, text=TEXT_BYTES),
            )
            for share, name, side in ((1 - half, "latents", size), (half, "half", size // 2))
            if share
        ]
    system = AdapterSystem(config, model.with_network(network), network, banks, objects, source("held-out"))
    return task.train(system, metrics=("loss",))


def load_base(config: TrainMVAdapterConfig) -> MVAdapter:
    """Load the frozen 2D model. Raises ConfigError if it is a multi-view model."""
    dtype = "auto" if config.training.bf16 else "fp32"
    with called("start"):
        model = MVAdapter.load(config.start, dtype=dtype, image_size=config.image_size)
    if model.unet.class_embedding is not None:
        raise ConfigError("is a multi-view model. Choose a 2D model, such as toybox-base", "start", config.start)
    return model


def add_adapter(config: TrainMVAdapterConfig, model: MVAdapter) -> AdaptedUNet:
    """Return the model's UNet with a new adapter, or with the one that the config starts from. Raises ConfigError."""
    o = config
    form = Form(o.tokens, o.arrangement, o.control, o.shift, o.shift_mode, o.anywhere, o.fov, o.timestep)
    network = new_adapter(o, model, form) if o.adapter is None else trained_adapter(o, model, form)
    check_image_size((model.image_size, model.image_size), network.multiple, None, ("image_size", "image_size"))
    return network


def new_adapter(config: TrainMVAdapterConfig, model: MVAdapter, form: Form) -> AdaptedUNet:
    """Build a new adapter whose attention branches initially have no effect on the output. Raises ConfigError."""
    seed_networks(config.seed, "adapter")
    try:
        return AdaptedUNet(
            model.unet, model.factor, form, config.branches, downscale=config.guider_downscale, fine=config.guider_fine
        )
    except ValueError as error:
        raise ConfigError(f"cannot take an adapter: {error}", "start", config.start) from None


def trained_adapter(config: TrainMVAdapterConfig, model: MVAdapter, form: Form) -> AdaptedUNet:
    """Load the adapter that the config starts from; `form` may differ from that of its file. Raises ConfigError."""
    file = locate("adapter", str(config.adapter))
    network = load_adapter(file, model.unet, model.factor, **asdict(form)).network
    if set(network.branches) != set(config.branches):
        found, wanted = (list(branches) for branches in (network.branches, config.branches))
        raise ConfigError(f"has branches={found}, the config has branches={wanted}", "adapter", config.adapter)
    downscale, found_downscale = config.guider_downscale, network.guider and network.guider.downscale_factor
    if downscale not in (None, found_downscale):
        problem = f"has guider_downscale={found_downscale}, the config has guider_downscale={downscale}"
        raise ConfigError(problem, "adapter", config.adapter)
    if config.guider_fine and network.guider is not None and network.fine is None:
        network.add_fine_guider()
    network.new_parts.requires_grad_(True).train()
    return network


run = partial(run_task, train, result=RESULT, files=(RESULT, "samples.png"))
