"""The task train-threedim: trains a novel-view model (3DiM) on pairs of views.

RUN/bank/           cache of views, encoded if the model works on latents; safe to delete
RUN/checkpoints/
RUN/gap.csv         result of the gap test (`gap.py`) by step and noise level
RUN/samples.png     held-out scenes: condition, sampled views and true views
RUN/model/          averaged weights; the option `sampler.weights` of other tasks takes this folder
"""

from functools import partial
from pathlib import Path

from threedgen.config import ConfigError, registry
from threedgen.data.srn.pairs import PairBank
from threedgen.guidance.novel_view import folder as folders
from threedgen.guidance.novel_view.latents import LatentPairs
from threedgen.guidance.novel_view.options import XUNetConfig
from threedgen.guidance.novel_view.xunet import XUNet
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.cache import digest
from threedgen.run.disk import writing
from threedgen.run.seeding import seed_networks
from threedgen.train.status import Status
from threedgen.train.task import Task, run_task

from .options import PixelsConfig, TrainThreeDiMConfig
from .system import PairSystem


def train(task: Task) -> Status:
    """Train the novel-view model of a config."""
    config: TrainThreeDiMConfig = task.config
    model = build(config)
    with writing(task.folder):
        system = PairSystem(config, model, bank(config, model, task.folder / "bank"))
    return task.train(system, metrics=("gap",), finish=lambda: system.metrics)


def build(config: TrainThreeDiMConfig) -> XUNet | LatentPairs:
    """Return the model to train: a new or trained network on pixels, or the UNet of a prior. Raises ConfigError."""
    if isinstance(config.model, PixelsConfig):
        if config.model.start is not None:
            return load_start(config.model.start, config.model.network)
        seed_networks(config.seed, "novel views")
        return XUNet(config.model.network)
    return LatentPairs(MVDream.load(config.model.start), config.model.poses)


def load_start(weights: str, network: XUNetConfig) -> XUNet:
    """Load a trained network. Raises ConfigError if it works on latents, or if its options differ from `network`."""
    model, _ = folders.load(weights)
    if not isinstance(model, XUNet):
        raise ConfigError("is a model on latents; choose one on pixels", "model.start", weights)
    for name, wanted in network:
        found = getattr(model.config, name)
        if found != wanted:
            raise ConfigError(f"should be {found}, as in model.start", f"model.network.{name}", wanted)
    return model


def bank(config: TrainThreeDiMConfig, model: XUNet | LatentPairs, folder: Path) -> PairBank:
    """Return the disk cache of the training views, encoded if the model works on latents."""
    size = model.image_size[0]
    source = registry.build("pair-source", config.data, size, config.seed)
    encoder = () if isinstance(model, XUNet) else (model.encode_images, f"VAE {digest(model.prior.vae)}")
    return PairBank(folder, source, size, config.data.held_out, *encoder)


run = partial(run_task, train, result="model", files=("model/config.json", "gap.csv", "samples.png"))
