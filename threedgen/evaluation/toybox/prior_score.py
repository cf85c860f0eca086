"""Carries out the task "evaluate-prior": samples held-out captions from a prior; the probe says what was drawn.

RUN/samples/00003.safetensors   one batch of objects, kept: a killed run goes on after the last whole one
RUN/report.json, report.md      figures with intervals, beside the probe's own on ground truth
RUN/sheet.png                   some of the samples with captions and verdicts
RUN/open/, open.png             the same for prompts that leave colours open
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from threedgen.data.toybox.captions import OpenToybox
from threedgen.data.toybox.pictures import FourSides
from threedgen.data.toybox.world import render_orbit
from threedgen.evaluation.metrics.view_use import Objects, view_use, view_use_table
from threedgen.evaluation.sampling import drawn_in_batches, random_ring, sample_rings
from threedgen.evaluation.tables import write_strips
from threedgen.guidance.matte import Matte
from threedgen.guidance.prior import Prior
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.arrays import evenly_spaced
from threedgen.run.cache import digest
from threedgen.run.progress import Count
from threedgen.run.seeding import generator, numpy_generator
from threedgen.train.task import Task, run_task

from .held_out import held_out_cases
from .open_prompts import Cases, measure, open_table, true_views
from .options import EvaluatePriorConfig
from .probe import Probe
from .report import Scores

HELD_BACK = 7_000_000
"""Added to the seed for objects that no training with a seed of its own has seen."""

KEYS = ("noun", "colour", "part", "part_colour", "bound", "order", "each_side", "side", "noun_single", "colour_single")


def evaluate(task: Task) -> None:
    """Samples, judges, reports. Raises ConfigError before any sampling for a missing probe."""
    config: EvaluatePriorConfig = task.config
    scores, cases = Scores(task), held_out_cases(config.samples, config.seed)
    draws = (numpy_generator(config.seed, case.index, "evaluation cameras") for case in cases)
    rings = [random_ring(rng, config.n_view, config.elevation_range) for rng in draws]
    prior: Prior = task.load_prior()
    weights = digest(prior.networks)
    start = " from noise" if config.from_noise else ""
    prompts = [case.caption for case in cases]

    def told(chosen: range) -> dict[str, str]:
        return {"prior": f"{weights}{start}", "captions": "\n".join(prompts[k] for k in chosen)}

    def draw(chosen: range) -> np.ndarray:
        rngs = [generator(config.seed, cases[k].index, "evaluation sample") for k in chosen]
        return sample_rings(prior, [prompts[k] for k in chosen], [rings[k] for k in chosen], config, rngs)

    drawn = drawn_in_batches(task, len(cases), told, draw)
    with Count("looking", len(cases), task.quiet) as count:
        for case, views, (azimuth, elevation) in zip(cases, drawn, rings, strict=True):
            at: Any = (azimuth, elevation, views.shape[1], False, np.deg2rad(config.fov), config.relative_distance)
            real = [render_orbit(case.truth(config.seed, k), *at).rgb for k in (0, 1)]
            scores.add(case, views, azimuth, real)
            count.add(1)
    sections, figures = more_figures(task, prior, f"{weights}{start}", scores.probe)
    about = {"samples": len(cases), "steps": config.steps, "guidance_scale": config.guidance_scale, **figures}
    shown = {k: drawn[k] for k in evenly_spaced(len(cases), config.sheet)}
    before = f"""# What the prior draws

{config.samples} held-out combinations, {config.n_view} views each from a random first azimuth, \
DDIM {config.steps} steps,
guidance {config.guidance_scale:g}, seed {config.seed}. Judged by the probe; beside it the probe's answers on
ground-truth renders of the same captions from the same cameras: more than that the meter cannot be expected to give."""
    after = """\
Order: of all ways to give the four sides to the views, the most probable is the one that the cameras say. A single
view's side counts as right within 15 degrees of its quarter."""
    scores.report(KEYS, before, "\n\n".join([after, *sections]), about, shown, prior=weights)


def more_figures(task: Task, prior: Any, sampler: str, probe: Probe) -> tuple[list[str], dict[str, Any]]:
    """Sections of the report on the use of other views and on open prompts, and their figures.

    The use of other views needs MVDream's noise levels by view; MV-Adapter has one level for all.

    sampler: digest of the prior and its start, by which kept samples are recognised.
    """
    config: EvaluatePriorConfig = task.config
    sections, figures = list[str](), dict[str, Any]()
    if config.view_use and isinstance(prior, MVDream):
        world = FourSides(OpenToybox(config.seed + HELD_BACK, "train"), config.n_view)
        objects = Objects.encoded(prior, world.block(range(config.view_use), prior.image_size))
        figures["view_use"] = view_use(prior, objects, config.seed)
        sections.append(view_use_table(figures["view_use"]))
    if config.open_nouns:
        cases = Cases.chosen(config.open_nouns, config.seeds)
        every = cases.every
        ring = np.arange(4) * np.pi / 2, float(np.deg2rad(15))

        def told(chosen: range) -> dict[str, str]:
            return {
                "prior": sampler,
                "open": "\n".join(f"{every[k].prompt} {every[k].seed}" for k in chosen),
            }

        def draw(chosen: range) -> np.ndarray:
            rngs = [generator(config.seed, every[k].seed, "open prompt") for k in chosen]
            return sample_rings(prior, [every[k].prompt for k in chosen], [ring] * len(chosen), config, rngs)

        drawn = drawn_in_batches(task, len(every), told, draw, "open") / np.float32(255)
        truth = [true_views(case, ring[0], drawn.shape[2], config.seed) for case in every]
        figures["open"] = measure(probe, Matte.load(config.matte), cases, list(drawn), truth)
        sections.append(open_table(figures["open"], config.open_nouns, config.seeds))
        shown = range(2 * config.open_nouns)
        write_strips(task.folder / "open.png", [drawn[k] for k in shown], [every[k].prompt for k in shown], 4)
    return sections, figures


run = partial(run_task, evaluate, result="report.md", again=True)
