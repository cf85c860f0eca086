"""Metrics of samples of open prompts, which leave the colour unspecified ("a dog", "a dog wearing a hat").

The metrics are: consistency of colours across views, presence of accessories, and variety between seeds. Each is also
computed for true renders of random objects of the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch

from threedgen.evaluation.metrics.colour import colour_disagreement, foreground_means
from threedgen.evaluation.metrics.figures import Json, Share, mean_estimate
from threedgen.evaluation.report import format_estimate, format_limits, format_share, markdown_table, rounded
from threedgen.guidance.matte import Matte
from threedgen.run.arrays import Array
from threedgen.run.seeding import numpy_generator
from threedgen.toybox.world.grammar import ACCESSORIES, NOUNS, Spec, caption
from threedgen.toybox.world.toybox import build, render_orbit

from .probe import Probe, combine_views

VARIETY_NOUNS = 6
"""Number of nouns that are sampled with many seeds."""
LOW_DISTANCE = 15
"""Maximum Lab distance between the views of an object that count as equal in colour."""


class OpenCase(NamedTuple):
    """Open prompt, as a spec without colours, and a seed."""

    spec: Spec
    seed: int

    @property
    def prompt(self) -> str:
        return caption(self.spec)


class OpenCases(NamedTuple):
    """Open prompts by metric: colours across views, accessories (``worn``, ``plain`` without them), variety."""

    agreement: list[OpenCase]
    worn: list[OpenCase]
    plain: list[OpenCase]
    variety: list[OpenCase]

    @classmethod
    def chosen(cls, nouns: int, seeds: int) -> OpenCases:
        """Choose ``nouns`` evenly spread nouns, and accessories in turn; ``seeds``: seeds per noun for variety."""
        vocabulary = list(NOUNS)
        spread = [vocabulary[k * len(vocabulary) // nouns] for k in range(nouns)]
        wearers = [word for word in vocabulary if NOUNS[word].wears]
        worn = []
        for k in range(nouns):
            accessory = list(ACCESSORIES)[k % len(ACCESSORIES)]
            able = [word for word in wearers if accessory in NOUNS[word].wears]
            worn.append(OpenCase(Spec(able[7 * k % len(able)], part=accessory), k))
        few = spread[:: max(1, nouns // VARIETY_NOUNS)][:VARIETY_NOUNS]
        return cls(
            [OpenCase(Spec(word), k) for k, word in enumerate(spread)],
            worn,
            [OpenCase(Spec(case.spec.noun), case.seed) for case in worn],
            [OpenCase(Spec(word), k) for word in few for k in range(seeds)],
        )

    @property
    def every(self) -> list[OpenCase]:
        return [*self.agreement, *self.worn, *self.plain, *self.variety]


def true_views(case: OpenCase, azimuth: Array, size: int, seed: int) -> Array:
    """Render views (V, size, size, 3) in [0, 1] of a random object of the prompt from ``azimuth`` (V,), radians."""
    rng = numpy_generator(seed, case.seed, f"open truth {case.prompt}")
    return render_orbit(build(case.spec, rng), azimuth, np.deg2rad(15), size).rgb


def measure(probe: Probe, matte: Matte, cases: OpenCases, views: Sequence[Array], truth: Sequence[Array]) -> Json:
    """Compute all metrics of samples ``views`` and true renders ``truth``, as JSON.

    Both have images (V, H, W, 3) in [0, 1] for each prompt, in the order of ``cases.every``.
    """
    ends = np.cumsum([0, *map(len, cases)])
    agreement, worn, plain, variety = (slice(a, b) for a, b in zip(ends, ends[1:], strict=False))
    sources = {"measured": views, "truth": truth}
    means = {name: [foreground_means(v, opaque(matte, v)) for v in of[agreement]] for name, of in sources.items()}
    objects = [[m for m in sides if m is not None] for sides in means["truth"]]
    chance = float(np.mean([np.linalg.norm(a[0] - b[0]) for a, b in combinations(filter(None, objects), 2)]))
    distances = {name: [colour_disagreement(m, chance) for m in each] for name, each in means.items()}
    nouns = {case.spec.noun: d for case, d in zip(cases.agreement, distances["measured"], strict=True)}
    found: Json = {"agreement": {name: mean_estimate(each) for name, each in distances.items()}}
    low = sum(d < LOW_DISTANCE for d in distances["measured"])
    found["agreement"] |= {"chance": chance, "below_15": low, "nouns": nouns}
    found |= {"accessories": {}, "variety": {}}
    words = [case.spec.part for case in cases.worn]
    for name, of in sources.items():
        rates = {}
        for kind, part in (("with", worn), ("without", plain)):
            hits = sum(is_present(probe, v, word) for v, word in zip(of[part], words, strict=True))
            rates[kind] = Share(hits, len(words)).plain()
        found["accessories"][name] = rates
        found["variety"][name] = _variety(probe, matte, cases.variety, of[variety])
    result: Json = rounded(found)
    return result


def opaque(matte: Matte, views: Array) -> Array:
    """Return the foreground masks (V, H, W), bool, of images (V, H, W, 3) in [0, 1]."""
    return matte.opacity(torch.from_numpy(views).float()).numpy() > 0.5


def is_present(probe: Probe, views: Array, word: str) -> bool:
    """Return whether the probe finds the part or accessory ``word`` in any of the views (V, H, W, 3) in [0, 1]."""
    answers = combine_views(probe.classify(torch.from_numpy(views).float()))
    return float(answers.part[probe.labels.words.index(word)]) > probe.threshold


def _variety(probe: Probe, matte: Matte, cases: Sequence[OpenCase], views: Sequence[Array]) -> dict[str, float]:
    """Measure the variety between the seeds of a noun, and return the mean over the nouns.

    colour_entropy is the entropy of the colour names in bits. shape_distance is 1 - IoU of the masks of view 0.
    """
    entropies, shapes = [], []
    for noun in dict.fromkeys(case.spec.noun for case in cases):
        own = [v for v, case in zip(views, cases, strict=True) if case.spec.noun == noun]
        names = [int(probe.classify(torch.from_numpy(v).float()).colour.mean(0).argmax()) for v in own]
        share = np.unique(names, return_counts=True)[1] / len(names)
        entropies.append(float(-(share * np.log2(share)).sum()))
        masks = [opaque(matte, v[:1])[0] for v in own]
        distances = [1 - (a & b).sum() / max(1, (a | b).sum()) for a, b in combinations(masks, 2)]
        shapes.append(float(np.mean(distances)))
    return {"colour_entropy": float(np.mean(entropies)), "shape_distance": float(np.mean(shapes))}


def open_table(figures: Json, count: int, seeds: int) -> str:
    """Return the report section with the table of the metrics of `measure`, in Markdown."""
    agreement, accessories, variety = (figures[key] for key in ("agreement", "accessories", "variety"))
    both = ("measured", "truth")

    def rates(kind: str) -> list[str]:
        shares = [Share.of(accessories[name][kind]) for name in both]
        return [f"{format_share(found)}, {format_limits(found)}" for found in shares]

    def numbers(key: str) -> list[str]:
        return [f"{variety[name][key]:.3f}" for name in both]

    colours = [format_estimate(agreement[name]) for name in both]
    rows = [
        ["Lab distance of the four views, no colour named", *colours, f"{agreement['chance']:.1f}"],
        [f"of {count} nouns below {LOW_DISTANCE}", str(agreement["below_15"]), "", ""],
        ["accessory without a colour is present", *rates("with"), ""],
        ["the same without its word", *rates("without"), ""],
        [
            f"entropy of colour names over {seeds} seeds, bits",
            *numbers("colour_entropy"),
            f"{math.log2(min(seeds, 12)):.2f}",
        ],
        ["distance of outlines between seeds", *numbers("shape_distance"), ""],
    ]
    return "## Open prompts\n\n" + markdown_table(["figure", "measured", "truth", "chance or maximum"], rows)
