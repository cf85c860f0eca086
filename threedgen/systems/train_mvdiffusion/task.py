"""The task "train-mvdiffusion": the attention between views around a frozen 2D model.

RUN/single-view/        checkpoints of the first stage, if there is one; single-view.safetensors when it is done
RUN/latents/, masks/, photos/    caches of encoded views, safe to delete
RUN/checkpoints/        of the second stage
RUN/blocks.safetensors  what is to be added to the 2D model, so far: `prior.blocks=` of the tasks that draw
RUN/samples.png         of each scene the truth, then what is drawn for it
"""

from __future__ import annotations

from functools import partial

from threedgen.config import registry
from threedgen.config.errors import ConfigError
from threedgen.data.scene_bank import SceneBank
from threedgen.guidance.distillation.lora import LoRA
from threedgen.guidance.mvdiffusion.difference import widened
from threedgen.guidance.mvdiffusion.inputs import Extra
from threedgen.guidance.mvdiffusion.model import MVDiffusion
from threedgen.guidance.mvdiffusion.unet import Kind, MultiviewUNet
from threedgen.run.folder import writing
from threedgen.run.seeding import generator, seed_networks
from threedgen.train.status import Status
from threedgen.train.task import Task, run_task

from .masks import MaskBank, MaskedViews, Paint, around_a_photo, painted
from .options import SingleViewConfig, TrainMVDiffusionConfig, Variant
from .system import RESULT, SingleViewSystem, ViewsSystem

EXTRA: dict[Variant, Extra] = {"panorama": "nothing", "outpaint": "mask", "depth": "depth"}


def train(task: Task) -> Status:
    """Both stages."""
    config: TrainMVDiffusionConfig = task.config
    model = MVDiffusion.load(config.start, camera=False)
    source = registry.build("scene-source", config.scenes, config.seed, "train")
    with writing(task.folder):
        bank = SceneBank(task.folder / "latents", source, model.vae, min(config.training.scenes, len(source)))
    lora = None if config.single_view is None else learn_single_views(task, model, bank, config.single_view)
    if model.extra != (wanted := EXTRA[config.variant]):
        raise ConfigError(
            f"{config.start!r} is told {model.extra}, and the variant {config.variant} needs a model that is told "
            f"{wanted}: leave single_view as it is, or start from such a model",
            "single_view",
        )

    seed_networks(config.seed, "views")
    kind: Kind = "depth" if config.variant == "depth" else "panorama"
    network = MultiviewUNet(model.unet, kind, config.training.encoding, condition=config.variant == "depth")
    model.with_network(network)
    photos = mask_bank(task, model, bank, "photos", around_a_photo) if config.variant == "outpaint" else None
    return task.train(ViewsSystem(config, model, bank, lora, photos), metrics=("loss",))


def mask_bank(task: Task, model: MVDiffusion, bank: SceneBank, name: str, paint: Paint) -> MaskBank:
    """Views of the scenes of which a part is left out: all of them, or of each scene the first, ``photos``."""
    config: TrainMVDiffusionConfig = task.config
    views = MaskedViews(bank.source, config.seed, config.mask, paint, first=name == "photos")
    with writing(task.folder):
        return MaskBank(task.folder / name, views, model.vae, bank.size[0], config.mask)


def learn_single_views(task: Task, model: MVDiffusion, bank: SceneBank, o: SingleViewConfig) -> LoRA | None:
    """The first stage; returns the additions to the UNet, with which it answers from now on."""
    config: TrainMVDiffusionConfig = task.config
    wanted = EXTRA[config.variant]
    if model.extra == "nothing" != wanted:
        model.unet = widened(model.unet, 1 if wanted == "depth" else 1 + model.latent_shape[0])
    lora = None if o.rank is None else LoRA(model.unet, o.rank, generator(config.seed, 0, "lora"))
    if lora is not None:
        lora.attach(model.unet)
    masks = mask_bank(task, model, bank, "masks", painted) if wanted == "mask" else None
    learner = SingleViewSystem(config, model, bank, lora, masks)
    task.stage("single-view", learner.learning, learner, "loss")
    learner.learning.requires_grad_(False)
    return lora


run = partial(run_task, train, result=RESULT, files=(RESULT, "samples.png"))
