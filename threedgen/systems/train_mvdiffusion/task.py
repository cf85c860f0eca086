"""The task "train-mvdiffusion": the attention between views around a frozen 2D model.

RUN/single-view/        (outpaint, depth) checkpoints of the first stage, single-view.safetensors when it is done
RUN/latents/, masks/    caches of encoded views, safe to delete
RUN/checkpoints/        of the second stage
RUN/blocks.safetensors  what is to be added to the 2D model, so far: `prior.blocks=` of the tasks that draw
RUN/samples.png         of each scene the truth, then what is drawn for it
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from threedgen.config import registry
from threedgen.config.errors import ConfigError
from threedgen.data.scene_bank import SceneBank
from threedgen.guidance.distillation.lora import LoRA
from threedgen.guidance.mvdiffusion.difference import widened
from threedgen.guidance.mvdiffusion.inputs import Told
from threedgen.guidance.mvdiffusion.model import MVDiffusion
from threedgen.guidance.mvdiffusion.unet import MultiviewUNet
from threedgen.run.folder import writing
from threedgen.run.seeding import generator, seed_networks
from threedgen.train.loop import Status
from threedgen.train.task import Task, run_task

from .masks import UNKNOWN, MaskBank
from .options import TrainMVDiffusionConfig, Variant
from .system import RESULT, SingleViewSystem, ViewsSystem

TOLD: dict[Variant, Told] = {"panorama": "nothing", "outpaint": "mask", "depth": "depth"}


def train(task: Task) -> Status:
    """Both stages."""
    config: TrainMVDiffusionConfig = task.config
    model = MVDiffusion.load(config.start, camera=False)
    source = registry.build("scene-source", config.scenes, config.seed, "train")
    with writing(task.folder):
        bank = SceneBank(task.folder / "latents", source, model.vae, min(config.training.scenes, len(source)))
    lora = learn_to_be_told(task, model, bank) if TOLD[config.variant] != "nothing" else None

    seed_networks(config.seed, "views")
    kind = "depth" if config.variant == "depth" else "panorama"
    network = MultiviewUNet(model.unet, kind, config.training.encoding, condition=config.variant == "depth")
    model.with_network(network)
    nothing = None
    if config.variant == "outpaint":
        nothing = model.encode_views(torch.full((1, *bank.size, 3), UNKNOWN[config.mask]))
    return task.train(ViewsSystem(config, model, bank, lora, nothing), metrics=("loss",))


def learn_to_be_told(task: Task, model: MVDiffusion, bank: SceneBank) -> LoRA | None:
    """The first stage, which a base that is told already goes through too; the additions that its UNet then has."""
    config: TrainMVDiffusionConfig = task.config
    wanted, channels, o = TOLD[config.variant], model.latent_shape[0], config.single_view
    if model.told not in ("nothing", wanted):
        raise ConfigError(f"{config.start!r} is told of {model.told}, and the variant needs {wanted}", "start")
    if model.told == "nothing":
        model.unet = widened(model.unet, 1 if wanted == "depth" else 1 + channels)
    lora = None if o.rank is None else LoRA(model.unet, o.rank, generator(config.seed, 0, "lora"))
    if lora is not None:
        lora.attach(model.unet)
    masks = None
    if wanted == "mask":
        with writing(task.folder):
            count, folder = bank.count * bank.n_view, task.folder / "masks"
            masks = MaskBank(folder, bank.source, model.vae, bank.size[0], count, config.seed, config.mask)
    learner = SingleViewSystem(config, model, bank, lora, masks)
    task.stage("single-view", learner.learning, learner, "loss")
    nn.ModuleDict({"unet": model.unet}).requires_grad_(False).eval()
    if lora is not None:
        lora.requires_grad_(False)
    return lora


run = partial(run_task, train, result=RESULT, files=(RESULT, "samples.png"))
