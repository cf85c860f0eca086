"""Measure what a prior samples where a prompt leaves something open: colours, accessories without a colour, variety.

Each figure stands beside the same of true renders (of random objects of the same prompt) and beside chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch

from threedgen.data.toybox.grammar import ACCESSORIES, NOUNS, Spec, caption
from threedgen.data.toybox.world import build, render_orbit
from threedgen.evaluation.metrics.colour import colour_disagreement, foreground_means
from threedgen.evaluation.metrics.figures import Share, mean_estimate
from threedgen.evaluation.tables import between, markdown_table, percent, rounded, with_interval
from threedgen.guidance.matte import Matte
from threedgen.run.seeding import numpy_generator

from .probe import Probe, combine_views

VARIETY_NOUNS = 6
"""Nouns of which many seeds are sampled, beside so many accessories and open prompts."""


class Case(NamedTuple):
    """An open prompt: its spec and the number of its seed."""

    spec: Spec
    seed: int

    @property
    def prompt(self) -> str:
        return caption(self.spec)


class Cases(NamedTuple):
    """Cases by what is measured on them; ``plain`` are those of ``worn`` without the accessory."""

    agreement: list[Case]
    worn: list[Case]
    plain: list[Case]
    variety: list[Case]

    @classmethod
    def chosen(cls, nouns: int, seeds: int) -> Cases:
        """Nouns spread evenly over the toybox; each accessory as often as any other."""
        every = list(NOUNS)
        spread = [every[k * len(every) // nouns] for k in range(nouns)]
        wearers = [word for word in every if NOUNS[word].wears]
        worn = []
        for k in range(nouns):
            accessory = list(ACCESSORIES)[k % len(ACCESSORIES)]
            able = [word for word in wearers if accessory in NOUNS[word].wears]
            worn.append(Case(Spec(able[7 * k % len(able)], part=accessory), k))
        few = spread[:: max(1, nouns // VARIETY_NOUNS)][:VARIETY_NOUNS]
        return cls(
            [Case(Spec(word), k) for k, word in enumerate(spread)],
            worn,
            [Case(Spec(case.spec.noun), case.seed) for case in worn],
            [Case(Spec(word), k) for word in few for k in range(seeds)],
        )

    @property
    def every(self) -> list[Case]:
        return [*self.agreement, *self.worn, *self.plain, *self.variety]


def true_views(case: Case, azimuth: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Views (V, H, W, 3) in [0, 1] of a random object of the case."""
    rng = numpy_generator(seed, case.seed, f"open truth {case.prompt}")
    return render_orbit(build(case.spec, rng), azimuth, np.deg2rad(15), size).rgb


def measure(
    probe: Probe, matte: Matte, cases: Cases, views: Sequence[np.ndarray], truth: Sequence[np.ndarray]
) -> dict[str, Any]:
    """All figures, of samples and of the truth, each a list of views (V, H, W, 3) in [0, 1] in order of ``every``."""
    ends = np.cumsum([0, *map(len, cases)])
    named = [slice(a, b) for a, b in zip(ends, ends[1:], strict=False)]
    agreement, worn, plain, variety = named
    found: dict[str, Any] = {}
    means = {
        name: [foreground_means(v, opaque(matte, v)) for v in source[agreement]]
        for name, source in (("measured", views), ("truth", truth))
    }
    objects = [[m for m in sides if m is not None] for sides in means["truth"]]
    chance = float(np.mean([np.linalg.norm(a[0] - b[0]) for a, b in combinations(filter(None, objects), 2)]))
    distances = {name: [colour_disagreement(m, chance) for m in each] for name, each in means.items()}
    found["agreement"] = {name: mean_estimate(each) for name, each in distances.items()}
    found["agreement"] |= {"chance": chance, "below_15": sum(d < 15 for d in distances["measured"])}
    found["agreement"]["nouns"] = {
        case.spec.noun: d for case, d in zip(cases.agreement, distances["measured"], strict=True)
    }
    words = [case.spec.part for case in cases.worn]
    for name, source in (("measured", views), ("truth", truth)):
        rates = {
            kind: Share(sum(sees(probe, v, word) for v, word in zip(source[part], words, strict=True)), len(words))
            for kind, part in (("with", worn), ("without", plain))
        }
        found.setdefault("accessories", {})[name] = {kind: rate.plain() for kind, rate in rates.items()}
        found.setdefault("variety", {})[name] = _variety(probe, matte, cases.variety, source[variety])
    return rounded(found)


def opaque(matte: Matte, views: np.ndarray) -> np.ndarray:
    """Foreground (V, H, W), bool, of views (V, H, W, 3) in [0, 1]."""
    return matte.opacity(torch.from_numpy(views).float()).numpy() > 0.5


def sees(probe: Probe, views: np.ndarray, word: str) -> bool:
    """Whether the probe sees a part or accessory in any of the views."""
    answers = combine_views(probe.classify(torch.from_numpy(views).float()))
    return float(answers.part[probe.labels.words.index(word)]) > probe.threshold


def _variety(probe: Probe, matte: Matte, cases: Sequence[Case], views: Sequence[np.ndarray]) -> dict[str, float]:
    """Over the seeds of each noun, mean over nouns: entropy of the colour names in bits, and distance of the outlines
    of view 0 (1 - intersection over union)."""
    entropies, shapes = [], []
    for noun in dict.fromkeys(case.spec.noun for case in cases):
        own = [v for v, case in zip(views, cases, strict=True) if case.spec.noun == noun]
        names = [int(probe.classify(torch.from_numpy(v).float()).colour.mean(0).argmax()) for v in own]
        share = np.unique(names, return_counts=True)[1] / len(names)
        entropies.append(float(-(share * np.log2(share)).sum()))
        masks = [opaque(matte, v[:1])[0] for v in own]
        apart = [1 - (a & b).sum() / max(1, (a | b).sum()) for a, b in combinations(masks, 2)]
        shapes.append(float(np.mean(apart)))
    return {"colour_entropy": float(np.mean(entropies)), "shape_distance": float(np.mean(shapes))}


def open_table(figures: dict[str, Any], count: int, seeds: int) -> str:
    """Markdown section of ``measure``."""
    agreement, accessories, variety = (figures[key] for key in ("agreement", "accessories", "variety"))

    def rate(name: str, kind: str) -> str:
        found = Share.of(accessories[name][kind])
        return f"{percent(found)}, {between(*(found.interval or (None, None)))}"

    most = math.log2(min(seeds, 12))
    rows = [
        [
            "Lab distance of the four views, no colour named",
            *_both(agreement, with_interval),
            f"{agreement['chance']:.1f}",
        ],
        [f"of {count} nouns below 15", str(agreement["below_15"]), "", ""],
        ["accessory without a colour is seen", rate("measured", "with"), rate("truth", "with"), ""],
        ["the same without its word", rate("measured", "without"), rate("truth", "without"), ""],
        [
            f"entropy of colour names over {seeds} seeds, bits",
            *_both(variety, _number("colour_entropy")),
            f"{most:.2f}",
        ],
        ["distance of outlines between seeds", *_both(variety, _number("shape_distance")), ""],
    ]
    return "## Open prompts\n\n" + markdown_table(["what", "measured", "truth", "chance or most"], rows)


def _both(figures: dict[str, Any], words: Callable[[Any], str]) -> list[str]:
    return [words(figures[name]) for name in ("measured", "truth")]


def _number(key: str) -> Callable[[dict[str, float]], str]:
    return lambda found: f"{found[key]:.3f}"
