"""The task "refine-decoder": the pictures of a prior's samples become sharper, its latents stay what they are.

RUN/checkpoints/          to go on from
RUN/reconstructions.png   held-out pictures above what the decoder makes of their latents
RUN/prior/                the whole prior with the new decoder
"""

from __future__ import annotations

import time
from pathlib import Path

from threedgen.cli import say
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.metrics import write_summary
from threedgen.systems.shared import writing
from threedgen.systems.train_base.autoencoder import AutoencoderSystem
from threedgen.train.loop import Status, fit, set_threads

from .options import RefineDecoderConfig


def run(config: RefineDecoderConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Train the decoder, or go on training it; returns the exit code."""
    begun, folder = time.monotonic(), Path(str(config.out))
    set_threads(config.threads)
    prior = MVDream.load(config.start)
    prior.vae.decoder.requires_grad_(True)
    prior.vae.get_submodule("post_quant_conv").requires_grad_(True)
    options = config.autoencoder.model_copy(update={"image_size": prior.image_size})
    system = AutoencoderSystem(options, config.seed, config.trainer.max_steps, prior.vae, decoder_only=True)
    status = fit(system, config, folder, resume=resume is not None, quiet=quiet, metrics=("psnr",))
    if status in (Status.FINISHED, Status.INTERRUPTED) and system.trainer.is_global_zero:
        with writing(folder):
            prior.vae.eval()
            prior.save(folder / "prior")
            write_summary(folder, config, time.monotonic() - begun, status=status.value)
        say(str(folder / "prior"))
    return status.exit_code
