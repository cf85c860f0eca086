"""The task "refine-decoder": the pictures of a prior's samples become sharper, its latents stay what they are.

RUN/checkpoints/          to go on from
RUN/reconstructions.png   held-out pictures above what the decoder makes of their latents
RUN/prior/                the whole prior with the new decoder
"""

from __future__ import annotations

from pathlib import Path

from threedgen.guidance.priors.mvdream import MVDream
from threedgen.systems.train_base.autoencoder import AutoencoderSystem
from threedgen.train.loop import Status
from threedgen.train.task import Task, run_task

from .options import RefineDecoderConfig

FILES = ("prior/model_index.json", "reconstructions.png")
"""What a run makes."""


def run(config: RefineDecoderConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Train the decoder, or go on training it; returns the exit code."""
    return run_task(train, config, resume, quiet, result="prior", files=FILES)


def train(task: Task) -> Status:
    config: RefineDecoderConfig = task.config
    prior = MVDream.load(config.start)
    prior.vae.decoder.requires_grad_(True)
    prior.vae.get_submodule("post_quant_conv").requires_grad_(True)
    options = config.autoencoder.model_copy(update={"image_size": prior.image_size})
    system = AutoencoderSystem(options, config.seed, config.trainer.max_steps, prior.vae, decoder_only=True)

    def save() -> dict:
        prior.save(task.folder / "prior")
        return {}

    return task.train(system, metrics=("psnr",), finish=save)
