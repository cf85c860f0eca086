"""The task "sample": views of one object straight from the prior, in seconds."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from threedgen.geometry.images import grid, write_png
from threedgen.guidance.priors.pipeline import MVDreamPipeline
from threedgen.run.disk import writing
from threedgen.run.prompts import normalise_prompt, prompt_warnings, with_suffix
from threedgen.run.seeding import generator
from threedgen.systems.sample.options import SampleConfig
from threedgen.train.task import Task, run_task

RESULT = "views.png"


def sample(task: Task) -> None:
    """Writes views.png (a row for each sample) and summary.json into the run folder."""
    config: SampleConfig = task.config
    prompt = normalise_prompt(config.prompt)
    prior = task.load_prior()
    notes = prompt_warnings(config.prompt, prior, config.prompt_notes())
    pipeline: Any = MVDreamPipeline.from_prior(prior)
    pipeline.set_progress_bar_config(disable=True)
    rows = [
        pipeline(
            with_suffix(prompt, config.suffix),
            config.negative_prompt,
            config.n_view,
            config.elevation,
            config.azimuth,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            generator=generator(config.seed, k, "sample"),
            output_type="np",
        ).images
        for k in range(config.samples)
    ]
    with writing(task.folder):
        write_png(task.folder / RESULT, grid(np.concatenate(rows), max(1, config.n_view)))
        task.summarise(notes=notes)


run = partial(run_task, sample, result=RESULT, files=(RESULT,))
