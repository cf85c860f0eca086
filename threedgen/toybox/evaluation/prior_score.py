"""Task "evaluate-prior": sample held-out captions from a prior, and judge the samples with the probe.

RUN/samples/                    batches of samples; a killed run resumes after its last batch
RUN/report.json, report.md      metrics with intervals, for the samples and for true renders of the same captions
RUN/sheet.png                   some of the samples with captions and verdicts
RUN/open/, open.png             samples of open prompts, which leave the colour unspecified
"""

import numpy as np
import torch

from threedgen.evaluation.metrics.figures import Json
from threedgen.evaluation.prior import PriorEvaluation
from threedgen.evaluation.report import write_strips
from threedgen.evaluation.runner import evaluation_task
from threedgen.evaluation.samples import random_ring, ring_poses
from threedgen.guidance.matte import Matte
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.arrays import evenly_spaced
from threedgen.run.seeding import numpy_generator
from threedgen.toybox.data.pictures import FourSides
from threedgen.toybox.world.captions import OpenToybox
from threedgen.toybox.world.toybox import render_orbit
from threedgen.train.task import Task

from .held_out import held_out_cases
from .open_prompts import OpenCases, measure, open_table, true_views
from .options import MATTE, EvaluatePriorConfig
from .probe import Probe
from .report import Judged, judge_case, write_judged

HELD_BACK = 7_000_000
"""Offset of the seed of the objects for the use of other views. No usual training seed gives the same objects."""
ELEVATION_RANGE = (0.0, 30.0)
"""Range of the random elevation of the cameras of an object, degrees."""
SHEET_OBJECTS = 24
VARIETY_SEEDS = 12
"""Number of seeds per open prompt for the variety between seeds."""
KEYS = ("noun", "colour", "part", "part_colour", "bound", "order", "each_side", "side", "noun_single", "colour_single")


class ToyboxPrior(PriorEvaluation[EvaluatePriorConfig, Judged]):
    """Evaluation of samples of held-out captions. An item is the index of a caption."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        config = self.config
        self.probe, self.cases = Probe.load(config.probe.weights), held_out_cases(config.samples, config.seed)
        self.items = range(len(self.cases))
        rngs = [numpy_generator(config.seed, case.index, "evaluation cameras") for case in self.cases]
        self.rings = [random_ring(rng, config.n_view, ELEVATION_RANGE) for rng in rngs]
        self.load_prior()
        self.sampler = self.weights + (" from noise" if config.from_noise else "")

    def prepare(self) -> None:
        config, prompts = self.config, [case.caption for case in self.cases]

        def metadata(indices: range) -> dict[str, str]:
            return {"prior": self.sampler, "captions": "\n".join(prompts[k] for k in indices)}

        c2w, numbers = torch.stack([ring_poses(ring) for ring in self.rings]), [case.index for case in self.cases]
        self.samples = self.sample(prompts, c2w, numbers, "evaluation sample", metadata, from_noise=config.from_noise)

    def measure(self, item: int) -> Judged:
        config, case, views, (azimuth, elevation) = self.config, self.cases[item], self.samples[item], self.rings[item]
        fov, distance = np.deg2rad(config.fov), config.relative_distance
        truth = [
            render_orbit(case.truth(config.seed, k), azimuth, elevation, views.shape[1], False, fov, distance).rgb
            for k in (0, 1)
        ]
        return judge_case(self.probe, case, views, azimuth, truth)

    def report(self, rows: list[Judged]) -> None:
        config = self.config
        sections, figures = self.sections()
        about = {"samples": len(rows), "steps": config.steps, "guidance_scale": config.guidance_scale, **figures}
        shown = {k: self.samples[k] for k in evenly_spaced(len(rows), SHEET_OBJECTS)}
        intro = f"""# Samples of the prior

{config.samples} held-out combinations, {config.n_view} views each from a random first azimuth, \
DDIM {config.steps} steps,
guidance {config.guidance_scale:g}, seed {config.seed}. Judged by the probe; beside it the probe's answers on
ground-truth renders of the same captions from the same cameras, an upper bound."""
        notes = """\
Order: of all assignments of the four sides to the views, that of the cameras is the most probable. A single view's side
counts as right within 15 degrees of its quarter."""
        text = "\n\n".join([notes, *sections])
        write_judged(self.task, self.probe, rows, KEYS, intro, text, about, shown, summary={"prior": self.weights})

    def sections(self) -> tuple[list[str], Json]:
        """Measure the use of other views, and samples of open prompts. Return report sections, and numbers as JSON.

        The use of other views is measured only for MVDream, which accepts another time step for each view.
        """
        config, sections, figures = self.config, list[str](), Json()
        if config.view_use and isinstance(self.prior, MVDream):
            world = FourSides(OpenToybox(config.seed + HELD_BACK, "train"), config.n_view)
            section, figures["view_use"] = self.view_use(world.block(range(config.view_use), self.prior.image_size))
            sections.append(section)
        if config.open_nouns:
            section, figures["open"] = self.open_prompts()
            sections.append(section)
        return sections, figures

    def open_prompts(self) -> tuple[str, Json]:
        """Sample open prompts, measure the samples, and return the report section, and numbers as JSON."""
        config, cases = self.config, OpenCases.chosen(self.config.open_nouns, VARIETY_SEEDS)
        every, prompts = cases.every, [case.prompt for case in cases.every]
        azimuth = np.arange(4) * np.pi / 2

        def metadata(indices: range) -> dict[str, str]:
            return {"prior": self.sampler, "open": "\n".join(f"{prompts[k]} {every[k].seed}" for k in indices)}

        c2w = ring_poses((azimuth, float(np.deg2rad(15)))).expand(len(every), 4, 4, 4)
        numbers = [case.seed for case in every]
        views = self.sample(prompts, c2w, numbers, "open prompt", metadata, "open", config.from_noise) / np.float32(255)
        truth = [true_views(case, azimuth, views.shape[2], config.seed) for case in every]
        figures = measure(self.probe, Matte.load(MATTE), cases, list(views), truth)
        shown = range(2 * config.open_nouns)
        write_strips(self.folder / "open.png", [views[k] for k in shown], [prompts[k] for k in shown], 4)
        return open_table(figures, config.open_nouns, VARIETY_SEEDS), figures


run = evaluation_task(ToyboxPrior)
