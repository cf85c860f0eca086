"""The task "train-mvdiffusion": the attention between views around a frozen 2D model.

RUN/single-view/        checkpoints of the first stage, if there is one; single-view.safetensors when it is done
RUN/latents/, masks/, photos/    caches of encoded views, safe to delete (NAME-half/: of half the size)
RUN/checkpoints/        of the second stage
RUN/blocks.safetensors  what is to be added to the 2D model, so far: `prior.blocks=` of the tasks that draw
RUN/samples.png         of each scene the truth, then what is drawn for it
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from threedgen.config import registry
from threedgen.config.errors import ConfigError, keyed
from threedgen.data.scene_bank import SceneBank
from threedgen.data.scene_views import SceneSource
from threedgen.guidance.coarse_to_fine import REFINE_STRENGTH, check_half_size, check_image_size
from threedgen.guidance.distillation.lora import ATTENTION, CONVOLUTIONS, LoRA
from threedgen.guidance.mvdiffusion.difference import difference, load_difference, widened
from threedgen.guidance.mvdiffusion.inputs import Extra
from threedgen.guidance.mvdiffusion.model import MVDiffusion
from threedgen.guidance.mvdiffusion.unet import Kind, MultiviewUNet
from threedgen.guidance.mvdiffusion.weights import difference_in, load_blocks, with_difference
from threedgen.guidance.weights.files import read_tensors, sha256
from threedgen.guidance.weights.loading import identify
from threedgen.guidance.weights.plugins import locate
from threedgen.run.disk import writing
from threedgen.run.seeding import generator, seed_networks
from threedgen.train.status import Status
from threedgen.train.task import Task, run_task

from .masks import MaskBank, MaskedViews, Paint, around_a_photo, painted
from .options import SingleViewConfig, TrainMVDiffusionConfig, Variant
from .system import RESULT, Seen, SingleViewSystem, ViewsSystem

EXTRA: dict[Variant, Extra] = {"panorama": "nothing", "outpaint": "mask", "depth": "depth"}


def train(task: Task) -> Status:
    """Both stages."""
    config: TrainMVDiffusionConfig = task.config
    model = MVDiffusion.load(config.start)
    blocks = None if config.blocks is None else locate("blocks", config.blocks)
    begun = None if blocks is None else read_tensors(blocks)
    kept = begun if config.single_view is None else None  # of which the 2D model stays too
    if kept is not None:
        with keyed("blocks"):
            model.unet = with_difference(model.unet, kept)
    check_told(config, model.extra, "start" if kept is None else "blocks")
    task.name_weights({"start": identify(config.start)})
    source = registry.build("scene-source", config.scenes, config.seed, "train")
    seen = scenes(task, model, source)
    lora = None if config.single_view is None else learn_single_views(task, model, seen, config.single_view, begun)
    seed_networks(config.seed, "views")
    kind: Kind = "depth" if config.variant == "depth" else "panorama"
    whole = config.variant == "depth" and not config.training.slim
    network = MultiviewUNet(model.unet, kind, config.training.encoding, condition=whole, convolution=whole)
    if begun is not None:
        with keyed("blocks"):
            load_blocks(network, begun, unet=kept is not None)
    model.with_network(network)
    if kept is not None:
        own = difference_in(kept)
    else:
        own = None if config.single_view and lora is None else difference(model.unet, lora)
    facts = {} if blocks is None or kept is None else {"blocks_sha256": sha256(blocks)}
    return task.train(ViewsSystem(config, model, seen, own, lora, **facts), metrics=("loss",))


def check_told(config: TrainMVDiffusionConfig, extra: Extra, key: str) -> None:
    """Is the 2D model told what the variant needs, or will it learn to be? Raises ConfigError for ``key``."""
    wanted = EXTRA[config.variant]
    if extra != wanted and (config.single_view is None or extra != "nothing"):
        raise ConfigError(
            f"{config.start!r} is told {extra}, and the variant {config.variant} needs a model that is told "
            f"{wanted}, or with single_view one that is told nothing",
            key,
        )


def scenes(task: Task, model: MVDiffusion, source: SceneSource) -> list[tuple[float, Seen]]:
    """What is seen of them in one size or in two, each with the share of the steps that see it. Raises ConfigError."""
    config: TrainMVDiffusionConfig = task.config
    half, count = config.training.half, min(config.training.scenes, len(source))
    at = source.scene(0).views.cameras
    size = (at.height, at.width)
    check_image_size(size, model.unit, None, ("scenes", "scenes"))
    check_half_size(size, half or None, model.unit, "training.half")
    model.draft = REFINE_STRENGTH if half else None
    if config.variant == "depth" and config.training.encoding == "reference":
        model.check_pairs(size, half > 0, "scenes")

    def seen(suffix: str) -> Seen:
        bank = SceneBank(task.folder / f"latents{suffix}", source, model.vae, count, half=bool(suffix))

        def masked(name: str, paint: Paint) -> MaskBank:
            views = MaskedViews(source, config.seed, config.mask, paint, first=name == "photos")
            return MaskBank(task.folder / f"{name}{suffix}", views, model.vae, bank.encoded_size[0])

        if config.variant != "outpaint":
            return Seen(bank)
        return Seen(bank, masked("masks", painted), masked("photos", around_a_photo))

    with writing(task.folder):
        return [(1 - half, seen("")), *([(half, seen("-half"))] if half else [])]


def learn_single_views(
    task: Task,
    model: MVDiffusion,
    seen: list[tuple[float, Seen]],
    o: SingleViewConfig,
    begun: Mapping[str, Tensor] | None,
) -> LoRA | None:
    """The first stage; returns the additions to the UNet, with which it answers from now on.

    begun: another run's blocks; if its UNet was told the same, and has additions, they are what is begun with.
    """
    config: TrainMVDiffusionConfig = task.config
    if model.extra != (wanted := EXTRA[config.variant]):
        model.unet = widened(model.unet, 1 if wanted == "depth" else 1 + model.latent_shape[0])
    targets = ATTENTION if o.layers == "attention" else ATTENTION + CONVOLUTIONS
    lora = None if o.rank is None else LoRA(model.unet, o.rank, generator(config.seed, 0, "lora"), targets=targets)
    if lora is not None:
        theirs = (begun and difference_in(begun)) or {}
        first = theirs.get("unet.conv_in.weight")
        if first is not None and first.shape == model.unet.conv_in.weight.shape:
            with keyed("blocks"):
                load_difference(model.unet, lora, theirs)
        lora.attach(model.unet)
    learner = SingleViewSystem(config, model, seen, lora)
    task.stage("single-view", learner.learning, learner, "loss")
    learner.learning.requires_grad_(False)
    return lora


run = partial(run_task, train, result=RESULT, files=(RESULT, "samples.png"))
