"""Carries out the task "evaluate-prior": samples held-out captions from a prior; the probe says what was drawn.

RUN/samples/00003.safetensors   one batch of objects, kept: a killed run goes on after the last whole one
RUN/report.json, report.md      figures with intervals, beside the probe's own on ground truth
RUN/sheet.png                   some of the samples with captions and verdicts
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from threedgen.data.toybox.world import portraits
from threedgen.evaluation.sampling import drawn_in_batches, random_ring, sample_rings
from threedgen.guidance.prior import Prior
from threedgen.run.arrays import evenly
from threedgen.run.cache import digest
from threedgen.run.progress import Count
from threedgen.run.seeding import generator, numpy_generator
from threedgen.train.task import Task, run_task

from .held_out import held_out_cases
from .options import EvaluatePriorConfig
from .report import Scores

KEYS = ("noun", "colour", "part", "part_colour", "bound", "order", "each_side", "side", "noun_single", "colour_single")


def evaluate(task: Task) -> None:
    """Samples, judges, reports. Raises ConfigError before any sampling for a missing probe."""
    config: EvaluatePriorConfig = task.config
    scores, cases = Scores(task), held_out_cases(config.samples, config.seed)
    draws = (numpy_generator(config.seed, case.index, "evaluation cameras") for case in cases)
    rings = [random_ring(rng, config.n_view, config.elevation_range) for rng in draws]
    prior: Prior = task.load_prior()
    weights = digest(prior.networks)
    prompts = [case.caption for case in cases]

    def told(chosen: range) -> dict[str, str]:
        return {"prior": weights, "captions": "\n".join(prompts[k] for k in chosen)}

    def draw(chosen: range) -> np.ndarray:
        rngs = [generator(config.seed, cases[k].index, "evaluation sample") for k in chosen]
        return sample_rings(prior, [prompts[k] for k in chosen], [rings[k] for k in chosen], config, rngs)

    drawn = drawn_in_batches(task, len(cases), told, draw)
    with Count("looking", len(cases), task.quiet) as count:
        for case, views, (azimuth, elevation) in zip(cases, drawn, rings, strict=True):
            at: Any = (azimuth, elevation, views.shape[1], False, np.deg2rad(config.fov), config.relative_distance)
            real = [portraits(case.truth(config.seed, k), *at).rgb for k in (0, 1)]
            scores.add(case, views, azimuth, real)
            count.add(1)
    about = {"samples": len(cases), "steps": config.steps, "guidance_scale": config.guidance_scale}
    shown = {k: drawn[k] for k in evenly(len(cases), config.sheet)}
    before = f"""# What the prior draws

{config.samples} held-out combinations, {config.n_view} views each from a random first azimuth, \
DDIM {config.steps} steps,
guidance {config.guidance_scale:g}, seed {config.seed}. Judged by the probe; beside it the probe's answers on
ground-truth renders of the same captions from the same cameras: more than that the meter cannot be expected to give."""
    after = """\
Order: of all ways to give the four sides to the views, the most probable is the one that the cameras say. A single
view's side counts as right within 15 degrees of its quarter."""
    scores.report(KEYS, before, after, about, shown, prior=weights)


run = partial(run_task, evaluate, result="report.md", again=True)
