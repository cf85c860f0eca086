"""Carries out the task "evaluate-prior": samples held-out captions from a prior; the probe says what was drawn.

RUN/samples/00003.safetensors   one batch of objects, kept: a killed run goes on after the last whole one
RUN/report.json, report.md      figures with intervals, beside the probe's own on ground truth
RUN/sheet.png                   some of the samples with captions and verdicts
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from threedgen.config import registry
from threedgen.data.toybox.world import portraits
from threedgen.evaluation.sampling import Ring, random_ring, read_views, ring_poses, write_views
from threedgen.geometry.images import to_uint8
from threedgen.guidance.prior import Prior
from threedgen.run.cache import digest
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.run.seeding import generator, numpy_generator
from threedgen.run.threads import set_threads

from .fidelity import distances
from .held_out import Case, held_out_cases
from .judging import Verdict, judge_pictures
from .options import EvaluatePriorConfig
from .probe import Probe
from .report import report_scores

KEYS = ("noun", "colour", "part", "part_colour", "bound", "order", "each_side", "side", "noun_single", "colour_single")


def run(config: EvaluatePriorConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Samples, judges, reports; returns the exit code. Raises ConfigError before any sampling for a missing probe."""
    begun = time.monotonic()
    probe = Probe.load(config.probe.weights)
    set_threads(config.threads)
    cases = held_out_cases(config.samples, config.seed)
    rings = [cameras(config, case) for case in cases]
    prior: Prior = registry.build("prior", config.prior)
    weights = digest(prior.networks)
    drawn = draw_all(config, prior, weights, cases, rings, quiet)
    if drawn is None:
        return 130
    measured, truth = list[Verdict](), list[Verdict]()
    draws: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    with Count("looking", len(cases), quiet) as count:
        for case, views, (azimuth, elevation) in zip(cases, drawn, rings, strict=True):
            measured.append(judge_pictures(probe, views, case.spec, azimuth))
            real = [portraits(case.truth(config.seed, k), azimuth, elevation, views.shape[1]).rgb for k in (0, 1)]
            truth.append(judge_pictures(probe, real[0], case.spec, azimuth))
            for seen, rgb in zip(draws, real, strict=True):
                seen.append(to_uint8(rgb))
            count.add(1)
    near = distances(probe, drawn, *draws) if len(cases) > 1 else None
    about = {"samples": len(cases), "steps": config.steps, "guidance_scale": config.guidance_scale}
    chosen = np.linspace(0, len(cases) - 1, min(config.sheet, len(cases))).astype(int).tolist()
    shown = {k: drawn[k] for k in chosen}
    return report_scores(
        config, begun, cases, measured, truth, KEYS, page(config), about, shown, fidelity=near, prior=weights
    )


def cameras(config: EvaluatePriorConfig, case: Case) -> Ring:
    """Draws where the cameras of a case stand."""
    rng = numpy_generator(config.seed, case.index, "evaluation cameras")
    return random_ring(rng, config.n_view, config.elevation_range)


def draw_all(
    config: EvaluatePriorConfig, prior: Prior, weights: str, cases: Sequence[Case], rings: Sequence[Ring], quiet: bool
) -> list[np.ndarray] | None:
    """Reads the views (V, H, W, 3) uint8 of every case from the files that are there already, or samples them; None
    after Ctrl-C. ``weights``: the digest of the prior's."""
    drawn: list[np.ndarray] = []
    with Interrupts() as interrupts, Count("sampling", len(cases), quiet) as count:
        for start in range(0, len(cases), config.batch):
            batch = cases[start : start + config.batch]
            path = Path(str(config.out)) / "samples" / f"{start // config.batch:05d}.safetensors"
            prompts = [case.caption for case in batch]
            metadata = {"prior": weights, "captions": "\n".join(prompts)}
            views = read_views(path, metadata)
            if views is None:
                if interrupts.stop:
                    return None
                rngs = [generator(config.seed, case.index, "evaluation sample") for case in batch]
                c2w = torch.stack([ring_poses(ring) for ring in rings[start : start + config.batch]])
                drawing = prior.sample(prompts, c2w, config.steps, config.guidance_scale, config.negative_prompt, rngs)
                views = to_uint8(drawing.unflatten(0, (len(batch), -1)))
                write_views(path, views, metadata)
            drawn += list(views)
            count.add(len(batch))
    return drawn


def page(config: EvaluatePriorConfig) -> tuple[str, str]:
    """Words report.md before and after its table."""
    before = f"""# What the prior draws

{config.samples} held-out combinations, {config.n_view} views each from a random first azimuth, \
DDIM {config.steps} steps,
guidance {config.guidance_scale:g}, seed {config.seed}. Judged by the probe; beside it the probe's answers on
ground-truth renders of the same captions from the same cameras: more than that the meter cannot be expected to give."""
    after = """\
Order: of all ways to give the four sides to the views, the most probable is the one that the cameras say. A single
view's side counts as right within 15 degrees of its quarter."""
    return before, after
