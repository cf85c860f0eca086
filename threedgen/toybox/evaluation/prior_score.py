"""Task "evaluate-prior": sample held-out captions from a prior, and judge the samples with the probe.

A prior is an image generator, and the probe a classifier of toybox images.

RUN/samples/                    batches of samples; a killed run resumes after its last batch
RUN/report.json, report.md      metrics with intervals, for the samples and for ground truth of the same captions
RUN/sheet.png                   some of the samples with captions and verdicts
RUN/open/, open.png             samples of open prompts, which leave the colour unspecified
"""

import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from threedgen.evaluation import report
from threedgen.evaluation.metrics.distributions import colour_disagreement, foreground_means
from threedgen.evaluation.metrics.figures import Estimate, Json, Proportion, mean_estimate, proportion
from threedgen.evaluation.prior import PriorEvaluation
from threedgen.evaluation.runner import evaluation_task, random_ring, ring_poses
from threedgen.guidance.matte import Matte
from threedgen.guidance.weights.other_models import MATTE
from threedgen.run.arrays import Array, evenly_spaced
from threedgen.run.seeding import numpy_generator
from threedgen.toybox.data.pictures import ViewRings
from threedgen.toybox.world.grammar import ACCESSORIES, NOUNS, Spec
from threedgen.toybox.world.open_toybox import OpenToybox
from threedgen.toybox.world.toybox import build, render_orbit
from threedgen.train.task import Task

from .held_out import Case, held_out_cases
from .options import EvaluatePriorConfig
from .probe import Probe, combine_views
from .report import Judged, judge_case, write_judged

VARIETY_NOUNS = 6
DEFAULT_COLOUR_DISTANCE = 50.0  # Lab distance of two objects if it cannot be measured; 50.4 in the model card
LOW_DISTANCE = 15  # maximum mean Lab distance between views of an object for which their colours count as equal


Cases = dict[str, list[Case]]
"""Open prompts, which leave colours unspecified: dict from the name of a group, such as "variety", to its prompts.

`open_cases` explains the groups. The index of a case is the seed of its sample."""


def open_cases(nouns: int, seeds: int) -> Cases:
    """Return prompts that leave colours unspecified, as a dict from the name of a group to its prompts.

    - "agreement": ``nouns`` different nouns alone, to measure whether all views of an object have equal colours.
    - "worn": ``nouns`` prompts with a noun and an accessory, such as a hat, to measure whether the accessory is there.
    - "plain": the prompts of "worn" without the accessory, for comparison.
    - "variety": at most 6 of the nouns of "agreement", each ``seeds`` times, to measure differences between seeds.
    """
    vocabulary, worn = list(NOUNS), []
    spread = [vocabulary[k * len(vocabulary) // nouns] for k in range(nouns)]
    for k in range(nouns):
        accessory = list(ACCESSORIES)[k % len(ACCESSORIES)]
        able = [word for word in vocabulary if accessory in NOUNS[word].wears]
        worn.append(Case(k, Spec(able[7 * k % len(able)], part=accessory)))
    few = spread[:: max(1, nouns // VARIETY_NOUNS)][:VARIETY_NOUNS]
    return {
        "agreement": [Case(k, Spec(word)) for k, word in enumerate(spread)],
        "worn": worn,
        "plain": [Case(case.index, Spec(case.spec.noun)) for case in worn],
        "variety": [Case(k, Spec(word)) for word in few for k in range(seeds)],
    }


def true_views(case: Case, azimuth: Array, size: int, seed: int) -> Array:
    """Render a ground-truth object of a prompt from azimuths (V,), radians, as images (V, size, size, 3) in [0, 1].

    ``case`` is the prompt: noun, colour and part of the object, and an index. Azimuth 0 is the front, and the elevation
    is 15 degrees. ``seed`` and ``case`` determine the random shape and the unspecified colours of the object.
    """
    rng = numpy_generator(seed, case.index, f"open truth {case.caption}")
    return render_orbit(build(case.spec, rng), azimuth, np.deg2rad(15), size).rgb


def measure_open_prompts(
    probe: Probe, matte: Matte, cases: Cases, views: Sequence[Array], truth: Sequence[Array]
) -> Json:
    """Measure samples of prompts without colours, and ground-truth renders of the same prompts.

    Args:
        probe: classifier of toybox images.
        matte: network that finds the foreground.
        cases: prompts in the groups of `open_cases`. "agreement": nouns alone. "worn": nouns with an accessory.
            "plain": the prompts of "worn" without the accessory. "variety": some nouns, each with several seeds.
        views: images (V, H, W, 3) in [0, 1] of the sample of each prompt, group by group.
        truth: images of a ground-truth object of each prompt, in the same form.

    Returns:
        Dict with the three entries below. Each has an entry "measured" for ``views`` and an entry "truth" for
        ``truth``. Every mean or share in these is a dict with the value and its 95 % interval.

        - "agreement", how equal the colours of an object's views are, for the group of this name: "measured" and
          "truth" are means over objects of the Lab distance between the foreground colours of two views. There are
          further numbers: "chance", the distance between two different ground-truth objects; "below_15", how many
          samples have a distance below 15; and "nouns", a dict from noun to the distance of its sample.
        - "accessories": "measured" and "truth" are dicts with two shares of objects on which the probe finds the
          accessory, "with" for the group "worn" and "without" for "plain".
        - "variety", the differences between seeds: "measured" and "truth" are dicts with two means over the nouns of
          this group. "colour_entropy" is the entropy, in bits, of the colour names that the probe finds.
          "shape_distance" is 1 - IoU of the outlines for two seeds.
    """
    ends = np.cumsum([0, *map(len, cases.values())])
    parts = {name: slice(ends[k], ends[k + 1]) for k, name in enumerate(cases)}
    sources, colours = {"measured": views, "truth": truth}, parts["agreement"]
    means = {
        name: [foreground_means(v, foreground_masks(matte, v)) for v in of[colours]] for name, of in sources.items()
    }
    objects = [[m for m in sides if m is not None] for sides in means["truth"]]
    chance = chance_distance([sides[0] for sides in objects if sides])
    distances = {name: [colour_disagreement(m, chance) for m in each] for name, each in means.items()}
    nouns = {case.spec.noun: d for case, d in zip(cases["agreement"], distances["measured"], strict=True)}
    low = sum(d < LOW_DISTANCE for d in distances["measured"])
    agreement: Json = {name: mean_estimate(each) for name, each in distances.items()}
    found: Json = {"agreement": agreement | {"chance": chance, "below_15": low, "nouns": nouns}}
    found |= {"accessories": {}, "variety": {}}
    words = [case.spec.part for case in cases["worn"]]
    for name, of in sources.items():
        found["accessories"][name] = {
            kind: proportion(
                [is_present(probe, v, word) for v, word in zip(of[parts[group]], words, strict=True)]
            ).plain()
            for kind, group in (("with", "worn"), ("without", "plain"))
        }
        found["variety"][name] = _variety(probe, matte, cases["variety"], of[parts["variety"]])
    return report.rounded(found)


def chance_distance(colours: Sequence[Array]) -> float:
    """Return the mean distance over all pairs of Lab colours (3,), one colour per object; 50 without a pair."""
    pairs = [float(np.linalg.norm(a - b)) for a, b in combinations(colours, 2)]
    return float(np.mean(pairs)) if pairs else DEFAULT_COLOUR_DISTANCE


def foreground_masks(matte: Matte, views: Array) -> Array:
    """Return foreground masks (V, H, W), bool, of images (V, H, W, 3) in [0, 1].

    A mask is True where ``matte``, a network that predicts the opacity of the object, gives more than 0.5.
    """
    return matte.opacity(torch.from_numpy(views).float()).numpy() > 0.5


def is_present(probe: Probe, views: Array, word: str) -> bool:
    """Return whether the probe finds the part or accessory ``word`` in any of the views (V, S, S, 3) in [0, 1].

    ``word`` is one of ``probe.labels.words``.
    """
    answers = combine_views(probe.classify(torch.from_numpy(views).float()))
    return float(answers.part[probe.labels.words.index(word)]) > probe.threshold


def _variety(probe: Probe, matte: Matte, cases: Sequence[Case], views: Sequence[Array]) -> dict[str, Estimate]:
    # entropy of colour names in bits, and 1 - IoU of the masks of view 0: means over nouns
    entropies, shapes = [], []
    for noun in dict.fromkeys(case.spec.noun for case in cases):
        own = [v for v, case in zip(views, cases, strict=True) if case.spec.noun == noun]
        names = [int(probe.classify(torch.from_numpy(v).float()).colour.mean(0).argmax()) for v in own]
        share = np.unique(names, return_counts=True)[1] / len(names)
        entropies.append(float(-(share * np.log2(share)).sum()))
        masks = [foreground_masks(matte, v[:1])[0] for v in own]
        distances = [1 - (a & b).sum() / max(1, (a | b).sum()) for a, b in combinations(masks, 2)]
        shapes.append(float(np.mean(distances)))
    return {"colour_entropy": mean_estimate(entropies), "shape_distance": mean_estimate(shapes)}


def open_table(figures: Json, count: int, seeds: int) -> str:
    both, agreement, entropy = ("measured", "truth"), figures["agreement"], f"{math.log2(min(seeds, 12)):.2f}"

    def rates(kind: str) -> list[str]:
        return [report.format_rate(Proportion.of(figures["accessories"][name][kind])) for name in both]

    def numbers(key: str) -> list[str]:
        return [report.format_estimate(figures["variety"][name][key]) for name in both]

    colours = [report.format_estimate(agreement[name]) for name in both]
    rows = [
        ["Lab distance of the four views, no colour named", *colours, f"{agreement['chance']:.1f}"],
        [f"nouns below {LOW_DISTANCE}", report.format_rate(Proportion(agreement["below_15"], count)), "", ""],
        ["accessory without a colour is present", *rates("with"), ""],
        ["the same without its word", *rates("without"), ""],
        [f"entropy of colour names over {seeds} seeds, bits", *numbers("colour_entropy"), entropy],
        ["distance of outlines between seeds", *numbers("shape_distance"), ""],
    ]
    return "## Open prompts\n\n" + report.markdown_table(["figure", "measured", "truth", "chance or maximum"], rows)


VIEW_USE_SEED_OFFSET = 7_000_000
"""Offset of the seed of the objects that measure how much a prior uses other views (option `view_use`). With it, they
differ from usual training objects."""
ELEVATION_RANGE = (0.0, 30.0)  # range of the random elevation of the cameras of an object, degrees
SHEET_OBJECTS = 24
VARIETY_SEEDS = 12
KEYS = ("noun", "colour", "part", "part_colour", "bound", "order", "each_side", "side", "noun_single", "colour_single")


class ToyboxPrior(PriorEvaluation[EvaluatePriorConfig, Judged]):
    """Evaluation of a prior's samples of held-out captions, judged by the probe.

    A prior is an image generator, the probe a classifier of toybox images. Held-out captions have combinations of noun,
    colour and part that training excludes. Each item, the argument of `measure`, is the index of a caption.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        config = self.config
        self.probe, self.cases = Probe.load(config.probe.weights), held_out_cases(config.samples, config.seed)
        self.items = range(len(self.cases))
        rngs = [numpy_generator(config.seed, case.index, "evaluation cameras") for case in self.cases]
        self.rings = [random_ring(rng, config.n_view, ELEVATION_RANGE) for rng in rngs]
        self.load_prior()

    def prepare(self) -> None:
        prompts = [case.caption for case in self.cases]

        def metadata(indices: range) -> dict[str, str]:
            return {"prior": self.weights, "captions": "\n".join(prompts[k] for k in indices)}

        c2w, numbers = torch.stack([ring_poses(ring) for ring in self.rings]), [case.index for case in self.cases]
        self.samples = self.sample(prompts, c2w, numbers, "evaluation sample", metadata)

    def measure(self, item: int) -> Judged:
        config, case, views, (azimuth, elevation) = self.config, self.cases[item], self.samples[item], self.rings[item]
        fov, distance = np.deg2rad(config.fov), config.relative_distance
        truth = [
            render_orbit(case.build_truth(config.seed, k), azimuth, elevation, views.shape[1], False, fov, distance).rgb
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
{f"DDIM {config.steps} steps, guidance {config.guidance_scale:g}" if self.prior else self.weights},
seed {config.seed}. Judged by the probe; beside it the probe's answers on
ground-truth renders of the same captions from the same cameras, an upper bound."""
        notes = """\
Order: of all assignments of the four sides to the views, that of the cameras is the most probable. A single view's side
counts as right within 15 degrees of its quarter."""
        text = "\n\n".join([notes, *sections])
        write_judged(self.task, self.probe, rows, KEYS, intro, text, about, shown, summary={"prior": self.weights})

    def sections(self) -> tuple[list[str], Json]:
        """Measure two further properties of the prior. Return Markdown sections of the report, and the results as JSON.

        The results have up to two keys:

        - "view_use": how much the prior uses the other views of an object when it denoises one view. It has the errors
          if the other views show the same object, show another object, or are almost pure noise (`measure_view_use`).
          Left out if the option `view_use` is 0, and for a prior that takes one timestep for all views.
        - "open": quality of samples of prompts without colours: consistency of the views' colours, shares of objects
          with the named accessory, and variety between seeds (`measure_open_prompts`). Left out if the option
          `open_nouns` is 0.

        If the option `existing` names a folder of views that are already sampled, there is no prior. Then "view_use" is
        left out, and "open" is measured on the views in the subfolder "open", or left out if there is none.
        """
        config, sections, figures = self.config, list[str](), Json()
        if config.view_use and self.prior is not None and self.prior.timestep_per_view:
            world = ViewRings(OpenToybox(config.seed + VIEW_USE_SEED_OFFSET, "train"), config.n_view)
            section, figures["view_use"] = self.view_use(
                world.render_examples(range(config.view_use), self.prior.image_size)
            )
            sections.append(section)
        if config.open_nouns and (config.existing is None or (Path(config.existing).expanduser() / "open").is_dir()):
            section, figures["open"] = self.open_prompts()
            sections.append(section)
        return sections, figures

    def open_prompts(self) -> tuple[str, Json]:
        config, cases = self.config, open_cases(self.config.open_nouns, VARIETY_SEEDS)
        every = [case for group in cases.values() for case in group]
        prompts = [case.caption for case in every]
        azimuth = np.arange(4) * np.pi / 2

        def metadata(indices: range) -> dict[str, str]:
            return {"prior": self.weights, "open": "\n".join(f"{prompts[k]} {every[k].index}" for k in indices)}

        c2w = ring_poses((azimuth, float(np.deg2rad(15)))).expand(len(every), 4, 4, 4)
        numbers = [case.index for case in every]
        views = self.sample(prompts, c2w, numbers, "open prompt", metadata, "open") / np.float32(255)
        truth = [true_views(case, azimuth, views.shape[2], config.seed) for case in every]
        figures = measure_open_prompts(self.probe, Matte.load(MATTE), cases, list(views), truth)
        shown = range(2 * config.open_nouns)
        report.write_strips(self.folder / "open.png", [views[k] for k in shown], [prompts[k] for k in shown], 4)
        return open_table(figures, config.open_nouns, VARIETY_SEEDS), figures


run = evaluation_task(ToyboxPrior)
