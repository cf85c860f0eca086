"""The task "sample": views of one object straight from the prior, in seconds."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from threedgen.cli import say
from threedgen.geometry.images import grid, write_png
from threedgen.run.metrics import write_summary
from threedgen.run.progress import silence_lightning
from threedgen.run.prompts import tidy, warn_about, with_suffix
from threedgen.run.seeding import generator
from threedgen.systems.sample.options import SampleConfig
from threedgen.systems.shared import load_prior, say_weights, writing
from threedgen.train.loop import set_threads

logger = logging.getLogger(__name__)


def run(config: SampleConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Write views.png (a row for each sample) and summary.json into the run folder."""
    begun, folder = time.monotonic(), Path(str(config.out))
    prompt = tidy(config.prompt)
    silence_lightning()
    set_threads(config.threads)
    say_weights(config.prior, quiet)
    prior = load_prior(config.prior)
    notes = warn_about(config.prompt, prior)
    pipeline = prior.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    loaded = time.monotonic()
    rows = [
        pipeline(
            with_suffix(prompt, config.suffix), config.negative_prompt, config.n_view, config.elevation, config.azimuth,
            num_inference_steps=config.steps, guidance_scale=config.guidance_scale,
            generator=generator(config.seed, k, "sample"), output_type="np",
        ).images
        for k in range(config.samples)
    ]  # fmt: skip
    sampled, columns = time.monotonic() - loaded, max(1, config.n_view)
    with writing(folder):
        path = write_png(folder / "views.png", grid(np.concatenate(rows), columns))
        write_summary(folder, config, time.monotonic() - begun, sampling_seconds=round(sampled, 3), notes=notes)
    if not quiet:
        logger.warning("%d x %d views in %.1f s", config.samples, columns, sampled)
    say(str(path))
    return 0
