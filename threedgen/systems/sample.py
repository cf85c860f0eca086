"""The task "sample": views of one object straight from the prior, in seconds."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from threedgen.cameras import orbit
from threedgen.cli import say
from threedgen.images import grid, write_png
from threedgen.ledger import write_summary
from threedgen.loop import set_threads
from threedgen.progress import silence_lightning
from threedgen.prompts import tidy, warn_about
from threedgen.seeding import generator

from .options import SampleConfig
from .shared import load_prior, writing

logger = logging.getLogger(__name__)


def run(config: SampleConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Write views.png (a row for each sample) and summary.json into the run folder."""
    begun, folder = time.monotonic(), Path(str(config.out))
    prompt = tidy(config.prompt)
    silence_lightning()
    set_threads(config.threads)
    prior = load_prior(config.prior)
    notes = warn_about(config.prompt, prior)
    loaded = time.monotonic()
    c2w = None
    if config.n_view:
        elevation, azimuth = (float(a) for a in torch.deg2rad(torch.tensor([config.elevation, config.azimuth])))
        c2w = orbit(config.n_view, elevation, 2.6, 0.7, 8, 8, azimuth=azimuth).c2w
    rows = []
    for k in range(config.samples):
        rng = generator(config.seed, k, "sample")
        rows.append(
            prior.sample(prompt, c2w, config.steps, config.guidance_scale, config.negative_prompt, generator=rng)
        )
    sampled, columns = time.monotonic() - loaded, max(1, config.n_view)
    with writing(folder):
        path = write_png(folder / "views.png", grid(torch.cat(rows), columns))
        write_summary(folder, config, time.monotonic() - begun, sampling_seconds=round(sampled, 3), notes=notes)
    if not quiet:
        logger.warning("%d x %d views in %.1f s", config.samples, columns, sampled)
    say(str(path))
    return 0
