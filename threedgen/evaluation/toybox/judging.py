"""Judges what the probe saw of one object by what was asked for, and counts many verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threedgen.data.toybox.grammar import NOUNS, Spec
from threedgen.data.toybox.primitives import Asset
from threedgen.data.toybox.world import Toybox
from threedgen.evaluation.metrics.figures import Share, in_order, majority, share
from threedgen.evaluation.metrics.fronts import classify_ring
from threedgen.evaluation.tables import rounded
from threedgen.geometry.images import to_uint8

from .labels import Labels, Truth, labelled
from .options import FRONT_THRESHOLD
from .probe import Answers, Probe, combine_views

FIGURES = {
    "noun": "noun",
    "colour": "colour of the noun",
    "part": "the named part is there",
    "part_absent": "an accessory that is not there is not seen",
    "part_colour": "the named part has its colour",
    "bound": "the named part is there in its colour",
    "order": "viewing sides in the right order",
    "each_side": "every view by itself shows its side",
    "one_front": "one front only",
    "side": "viewing side, single view",
    "noun_single": "noun, single view",
    "colour_single": "colour, single view",
}
"""Keys of a verdict's answers, and how a report calls them."""


@dataclass(frozen=True)
class Verdict:
    """About one object. ``answers``: key of FIGURES -> True, False, None (not applicable) or one of these for each
    view; ``words``: what the probe sees."""

    answers: dict[str, Any]
    words: dict[str, str]
    fronts: int | None
    azimuth_error: float | None

    def plain(self) -> dict[str, Any]:
        """For a report."""
        return {"said" if key == "words" else key: value for key, value in rounded(asdict(self)).items()}

    def all_wrong(self) -> Verdict:
        """The verdict about a result that is none: wrong in all that is asked."""
        wrong = {key: [False] * len(value) if isinstance(value, list) else False for key, value in self.answers.items()}
        return Verdict(wrong, {"noun": "nothing", "colour": "no"}, None, None)


def judge(
    views: Answers,
    spec: Spec,
    labels: Labels,
    azimuth: np.ndarray | None = None,
    vote: bool = False,
    threshold: float = 0.5,
) -> Verdict:
    """Compares ``views`` of one object with ``spec``; what it leaves open is not judged.

    ``azimuth`` (V,) radians: where the cameras stood, for the viewing sides. ``vote``: noun and colour by majority
    of the views instead of their mean log-probability. ``threshold``: probability from which a part is seen.
    """
    seen = combine_views(views)
    pick: Callable[[Tensor], int] = (lambda x: majority(x.numpy())) if vote else (lambda x: int(x.mean(0).argmax()))
    answers: dict[str, Any] = {}
    words = dict[str, str]()
    for key, names in (("noun", labels.nouns), ("colour", labels.colours)):
        single, asked = getattr(views, key), getattr(spec, key)
        choice = pick(single)
        words[key] = names[choice]
        if asked:
            expected = names.index(asked)
            answers |= {key: choice == expected, f"{key}_single": (single.argmax(1) == expected).tolist()}
    if spec.part:
        word = labels.words.index(spec.part)
        there, painted = float(seen.part[word]), int(seen.part_colour[word].argmax())
        visible = there > threshold
        words["part"] = f"{labels.colours[painted]} {spec.part}" if visible else f"no {spec.part}"
        answers["part"] = visible
        if spec.part_colour:
            expected = labels.colours.index(spec.part_colour)
            answers |= {"part_colour": painted == expected, "bound": visible and painted == expected}
    count, error = None, None
    if azimuth is not None and NOUNS[spec.noun].front:
        found, count, error = _sides(views, azimuth)
        answers |= found
    return Verdict(answers, words, count, error)


def judge_pictures(
    probe: Probe, pictures: np.ndarray, spec: Spec, azimuth: np.ndarray | None = None, vote: bool = False
) -> Verdict:
    """Judges what the probe sees in the views (V, H, W, 3) of one object, uint8 or floats in [0, 1]."""
    views = probe.classify(torch.from_numpy(to_uint8(pictures)).float() / 255)
    return judge(views, spec, probe.labels, azimuth, vote, probe.threshold)


def _sides(views: Answers, azimuth: np.ndarray) -> tuple[dict[str, Any], int, float]:
    """Judges the viewing sides: answers, the number of fronts, and the mean error of the azimuth in degrees."""
    found = classify_ring(views.side.exp().numpy(), azimuth, FRONT_THRESHOLD)
    answers: dict[str, Any] = {"side": list(found.right), "each_side": all(found.right)}
    if len(azimuth) % 4 == 0:
        answers["order"] = in_order(views.side.numpy(), azimuth)
    if len(azimuth) >= 8:
        answers["one_front"] = found.fronts == 1
    away = views.azimuth.numpy() - azimuth
    return answers, found.fronts, float(np.degrees(np.abs(np.angle(np.exp(1j * away)))).mean())


def tally(verdicts: Sequence[Verdict]) -> dict[str, Share]:
    """Counts the share of right answers for each key that was asked at all."""
    figures = {}
    for key in FIGURES:
        answers: list[bool | None] = []
        for verdict in verdicts:
            answer = verdict.answers.get(key)
            answers += answer if isinstance(answer, list) else [answer]
        figures[key] = share(answers)
    return {key: figure for key, figure in figures.items() if figure.total}


def own_accuracy(probe: Probe, box: Toybox, indices: Sequence[int]) -> list[Verdict]:
    """Judges ground truth: samples of a toybox, rendered as ``box.view`` says, judged like anything else.

    And of one accessory that an object could wear and does not: whether the probe sees it nevertheless.
    """
    verdicts = []
    for asset, views, truth in _classified(probe, box, indices):
        spec = Spec(asset.noun, asset.colour, asset.size, asset.part, asset.part_colour)
        verdict = judge(views, spec, probe.labels, truth.azimuth.numpy(), threshold=probe.threshold)
        absent = [word for word in NOUNS[asset.noun].wears if word not in asset.labels]
        if absent:
            word = probe.labels.words.index(absent[asset.index % len(absent)])
            verdict.answers["part_absent"] = float(combine_views(views).part[word]) <= probe.threshold
        verdicts.append(verdict)
    return verdicts


def calibrate(probe: Probe, box: Toybox, indices: Sequence[int]) -> float:
    """Finds the probability from which on an accessory should count as seen: then as many are missed as imagined.

    In training most words are absent from most pictures, so the probe is shy; asked about a caption's word, it
    should answer without that prejudice. Keeps what it finds in ``probe.threshold``.
    """
    present, absent = [], []
    for asset, views, truth in _classified(probe, box, indices):
        seen, shown = combine_views(views).part, truth.seen.amax(0)
        for word in NOUNS[asset.noun].wears:
            column = probe.labels.words.index(word)
            if shown[column] == 1:
                present.append(float(seen[column]))
            elif word not in asset.labels:
                absent.append(float(seen[column]))
    probe.threshold = equal_error(present, absent)
    return probe.threshold


def _classified(probe: Probe, box: Toybox, indices: Sequence[int]) -> Iterator[tuple[Asset, Answers, Truth]]:
    """Renders samples of a toybox and yields each with what the probe sees in four views, and their truth."""
    n_view, size, chunk = 4, 128, 32
    for start in range(0, len(indices), chunk):
        assets, rgb, truth = labelled(box, indices[start : start + chunk], size, n_view, probe.labels)
        views = probe.classify(torch.from_numpy(rgb))
        for k, asset in enumerate(assets):
            part = slice(k * n_view, (k + 1) * n_view)
            yield asset, views[part], truth[part]


def equal_error(present: Sequence[float], absent: Sequence[float]) -> float:
    """Finds the threshold at which the share of ``present`` below equals the share of ``absent`` above it, as near as
    it comes; 0.5 if either is empty."""
    if not present or not absent:
        return 0.5
    here, gone = np.sort(present), np.sort(absent)
    choices = np.unique([*here, *gone])
    missed = np.searchsorted(here, choices, side="right") / len(here)
    imagined = 1 - np.searchsorted(gone, choices, side="right") / len(gone)
    return float(choices[np.abs(missed - imagined).argmin()])
