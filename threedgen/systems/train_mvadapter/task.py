"""The task "train-mvadapter": an adapter, with which a frozen 2D model draws several views of an object.

RUN/latents/             cache of encoded views, safe to delete
RUN/checkpoints/
RUN/adapter.safetensors  the adapter so far, averaged: `prior.adapter=` of the tasks that draw
RUN/samples.png          of held-out objects the truth, then what is drawn for them
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from threedgen.config import registry
from threedgen.config.errors import ConfigError, called
from threedgen.data.bank import LatentBank
from threedgen.data.object_views import ObjectViews
from threedgen.guidance.coarse_to_fine import REFINE_STRENGTH, check_half_size, check_image_size
from threedgen.guidance.mvadapter.form import Form
from threedgen.guidance.mvadapter.model import MVAdapter
from threedgen.guidance.mvadapter.network import AdaptedUNet
from threedgen.guidance.mvadapter.weights import load_adapter
from threedgen.guidance.weights.loading import identify
from threedgen.guidance.weights.plugins import locate
from threedgen.run.disk import writing
from threedgen.run.seeding import seed_networks
from threedgen.train.status import Status
from threedgen.train.task import Task, run_task

from .options import TrainMVAdapterConfig
from .system import RESULT, AdapterSystem

TOGETHER, TEXT = 4, 240
"""Objects that are rendered and encoded together; bytes kept of a caption."""


def train(task: Task) -> Status:
    """Raises ConfigError."""
    config: TrainMVAdapterConfig = task.config
    model = load_base(config)
    network = adapt(config, model)
    task.name_weights({"start": identify(config.start)})

    def source(split: str) -> ObjectViews:
        built: ObjectViews = registry.build(
            "object-source",
            config.objects,
            config.seed,
            split,
            config.control,
            "ref" in config.branches,
            config.anywhere,
            config.fov,
        )
        return built

    objects = source("train")
    with writing(task.folder):
        banks = [
            (share, LatentBank(task.folder / name, objects, model.vae, size, len(objects), block=TOGETHER, text=TEXT))
            for name, share, size in sizes(config, model)
        ]
    system = AdapterSystem(config, model.with_network(network), network, banks, objects, source("held-out"))
    return task.train(system, metrics=("loss",))


def load_base(config: TrainMVAdapterConfig) -> MVAdapter:
    """The 2D model. Raises ConfigError for a multi-view one."""
    dtype = "auto" if config.training.bf16 else "fp32"
    with called("start"):
        model = MVAdapter.load(config.start, dtype=dtype, image_size=config.image_size)
    if model.unet.class_embedding is not None:
        raise ConfigError(
            f"{config.start!r} is a multi-view model, which takes cameras itself; an adapter is for a 2D model, such as"
            " toybox-base",
            "start",
        )
    return model


def sizes(config: TrainMVAdapterConfig, model: MVAdapter) -> list[tuple[str, float, int]]:
    """A folder for the latents of views of each size, the share of the steps that see them, and their pixels."""
    half = config.training.half
    check_half_size((model.image_size, model.image_size), half or None, model.unit, "training.half")
    model.draft = REFINE_STRENGTH if half else None
    every = [("latents", 1 - half, model.image_size), ("half", half, model.image_size // 2)]
    return [each for each in every if each[1]]


def adapt(config: TrainMVAdapterConfig, model: MVAdapter) -> AdaptedUNet:
    """Puts the adapter that learns into the model. Raises ConfigError."""
    o = config
    form = Form(o.tokens, o.arrangement, o.control, o.shift, o.shift_mode, o.anywhere, o.fov, o.timestep)
    network = fresh_adapter(o, model, form) if o.adapter is None else earlier_adapter(o, model, form)
    check_image_size((model.image_size, model.image_size), network.multiple, None, ("image_size", "image_size"))
    return network


def fresh_adapter(config: TrainMVAdapterConfig, model: MVAdapter, form: Form) -> AdaptedUNet:
    """An adapter that changes nothing yet but by its guider. Raises ConfigError."""
    seed_networks(config.seed, "adapter")
    try:
        return AdaptedUNet(
            model.unet, model.factor, form, config.branches, downscale=config.guider_downscale, fine=config.guider_fine
        )
    except ValueError as error:
        raise ConfigError(f"an adapter cannot be put into {config.start!r}: {error}", "start") from None


def earlier_adapter(config: TrainMVAdapterConfig, model: MVAdapter, form: Form) -> AdaptedUNet:
    """That of a file, which learns on in another form, if this one is another. Raises ConfigError."""
    file = locate("adapter", str(config.adapter))
    network = load_adapter(file, model.unet, model.factor, **asdict(form)).network
    if set(network.branches) != set(config.branches):
        has, asked = (f"[{', '.join(each)}]" for each in (network.branches, config.branches))
        raise ConfigError(f"has branches={has}, and {asked} are asked for", "adapter", config.adapter)
    wanted, there = config.guider_downscale, network.guider and network.guider.downscale_factor
    if wanted is not None and wanted != there:
        raise ConfigError(f"has guider_downscale={there}, and {wanted} is asked for", "adapter", config.adapter)
    if config.guider_fine and network.guider is not None and network.fine is None:
        network.add_fine_guider()
    network.new_parts.requires_grad_(True).train()
    return network


run = partial(run_task, train, result=RESULT, files=(RESULT, "samples.png"))
