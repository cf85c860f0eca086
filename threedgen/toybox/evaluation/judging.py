"""Verdicts on objects: answers of the probe (an image classifier) for views of an object, compared with its prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from threedgen.evaluation.metrics.figures import (
    Json,
    Proportion,
    equal_error,
    in_order,
    majority,
    proportion,
    proportion_of_groups,
)
from threedgen.evaluation.metrics.fronts import classify_ring
from threedgen.evaluation.options import FRONT_THRESHOLD
from threedgen.evaluation.report import rounded
from threedgen.geometry.images import to_uint8
from threedgen.toybox.world.grammar import NOUNS, Spec
from threedgen.toybox.world.primitives import Asset
from threedgen.toybox.world.toybox import Toybox

from .labels import Labels, Truth, labelled
from .probe import Answers, Probe, combine_views

FIGURES = {
    "noun": "noun",
    "colour": "colour of the noun",
    "part": "the named part is present",
    "part_absent": "an absent accessory is not found",
    "part_colour": "the named part has its colour",
    "bound": "the named part is present in its colour",
    "order": "viewing sides in the right order",
    "each_side": "every single view shows its side",
    "one_front": "one front only",
    "side": "viewing side, single view",
    "noun_single": "noun, single view",
    "colour_single": "colour, single view",
}
"""Dict from the keys of a verdict's answers to their names in reports."""
Answer = bool | list[bool] | None


@dataclass(frozen=True)
class Verdict:
    """Comparison of an object with its specification: which of its attributes are correct, according to the probe.

    Attributes:
        answers: maps "noun", "colour" and other keys of `FIGURES` to whether the attribute is correct. Keys that do not
            apply to the object are missing or None. Keys that concern single views ("side", "noun_single",
            "colour_single") have a list with one answer per view.
        words: maps "noun", "colour" and, if the prompt names a part, "part" to what the probe (an image classifier)
            finds, such as "dog", "red" and "blue hat" (or "no hat").
        fronts: number of fronts found; None if the noun has no front or the camera azimuths are unknown.
        azimuth_error: mean absolute error of the predicted camera azimuths, degrees; None if ``fronts`` is None.
    """

    answers: dict[str, Answer]
    words: dict[str, str]
    fronts: int | None
    azimuth_error: float | None

    def plain(self) -> Json:
        return rounded(asdict(self))

    def all_wrong(self) -> "Verdict":
        """Return a copy for an object whose run failed: all answers are False, and the number of fronts is None."""
        wrong: dict[str, Answer] = {
            key: [False] * len(value) if isinstance(value, list) else False for key, value in self.answers.items()
        }
        return Verdict(wrong, {"noun": "nothing", "colour": "no"}, None, None)


def judge(
    views: Answers,
    spec: Spec,
    labels: Labels,
    azimuth: np.ndarray | None = None,
    vote: bool = False,
    threshold: float = 0.5,
) -> Verdict:
    """Compare a classifier's answers for V views of one object with the specification of the object.

    The verdict says which attributes, such as noun, colour and part, are correct, and how many fronts the object has.

    Args:
        views: the classifier's probabilities of noun, colour, parts, their colours and viewing side, for each view.
        spec: specification of the object: noun, colour, part and colour of the part. What it leaves open is not judged.
        labels: vocabulary of the classifier.
        azimuth: azimuths (V,) of the cameras, radians, 0 at the front; None: viewing sides and number of fronts are not
            judged.
        vote: how the noun and the colour of the object are decided. True: the class that most views find. False: the
            class with the highest log-probability, averaged over the views.
        threshold: a part counts as present if its probability is above this value in at least one view.
    """
    combined = combine_views(views)
    answers: dict[str, Answer] = {}
    words = dict[str, str]()

    def most_probable(x: Tensor) -> int:
        return majority(x.numpy()) if vote else int(x.mean(0).argmax())

    for key, names in (("noun", labels.nouns), ("colour", labels.colours)):
        single, specified = getattr(views, key), getattr(spec, key)
        choice = most_probable(single)
        words[key] = names[choice]
        if specified:
            expected = names.index(specified)
            answers |= {key: choice == expected, f"{key}_single": (single.argmax(1) == expected).tolist()}
    if spec.part:
        word = labels.words.index(spec.part)
        probability, colour = float(combined.part[word]), int(combined.part_colour[word].argmax())
        present = probability > threshold
        words["part"] = f"{labels.colours[colour]} {spec.part}" if present else f"no {spec.part}"
        answers["part"] = present
        if spec.part_colour:
            expected = labels.colours.index(spec.part_colour)
            answers |= {"part_colour": colour == expected, "bound": present and colour == expected}
    fronts, error = None, None
    if azimuth is not None and NOUNS[spec.noun].front:
        found, fronts, error = _sides(views, azimuth)
        answers |= found
    return Verdict(answers, words, fronts, error)


def judge_views(
    probe: Probe, images: np.ndarray, spec: Spec, azimuth: np.ndarray | None = None, vote: bool = False
) -> Verdict:
    """Classify the views (V, H, W, 3) of one object, uint8 or floats in [0, 1], and compare the answers with ``spec``.

    ``spec`` is the specification of the object: noun, colour, part and colour of the part. The verdict says which of
    these are correct, and how many fronts the object has. ``azimuth`` (V,) are the camera azimuths in radians, 0 at the
    front; None: viewing sides and number of fronts are not judged. ``vote`` decides how the noun and the colour of the
    object are found. True: the class that most views find. False: the class with the highest log-probability, averaged
    over the views.
    """
    views = probe.classify(torch.from_numpy(to_uint8(images)).float() / 255)
    return judge(views, spec, probe.labels, azimuth, vote, probe.threshold)


def _sides(views: Answers, azimuth: np.ndarray) -> tuple[dict[str, Answer], int, float]:
    ring = classify_ring(views.side.exp().numpy(), azimuth, FRONT_THRESHOLD)
    answers: dict[str, Answer] = {"side": list(ring.correct), "each_side": all(ring.correct)}
    if len(azimuth) % 4 == 0:
        answers["order"] = in_order(views.side.numpy(), azimuth)
    if len(azimuth) >= 8:
        answers["one_front"] = ring.fronts == 1
    difference = views.azimuth.numpy() - azimuth
    return answers, ring.fronts, float(np.degrees(np.abs(np.angle(np.exp(1j * difference)))).mean())


def tally(verdicts: Sequence[Verdict]) -> dict[str, Proportion]:
    """Return the shares of correct answers over all verdicts: a dict from attribute (key of `FIGURES`, such as "noun").

    A verdict says which attributes of an object are correct. Attributes without any answer are left out.

    Each share has a 95 % interval. For attributes with one answer per object, it is Wilson's score interval. The
    attributes "side", "noun_single" and "colour_single" have one answer per view. Answers for views of the same object
    depend on each other, so the interval is a bootstrap over objects. If an attribute is correct in all views of all
    objects, or in none, a bootstrap has no spread: Wilson's interval is used, as if each object had a single answer.
    """
    figures = {}
    for key in FIGURES:
        found = [verdict.answers.get(key) for verdict in verdicts]
        groups = [answer for answer in found if isinstance(answer, list)]
        single = [answer for answer in found if not isinstance(answer, list)]
        figures[key] = proportion_of_groups(groups) if groups else proportion(single)
    return {key: figure for key, figure in figures.items() if figure.total}


def judge_ground_truth(probe: Probe, box: Toybox, indices: Sequence[int]) -> list[Verdict]:
    """Judge four views of each of the ground-truth objects ``indices`` of ``box``, to measure the probe's accuracy.

    ``box`` is a data set of toybox objects, ``probe`` a classifier of their images. Return one verdict per object,
    which compares the probe's answers with the true noun, colours and part. If the object lacks accessories that its
    noun can wear, the verdict has an answer about one of them: "part_absent" is True if the probe does not find it.
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
    """Set ``probe.threshold``, the probability above which a part counts as present, and return it.

    At this threshold, the share of visible accessories that are missed equals the share of absent ones that are found.
    Most parts are absent from most training images, so the probabilities, and hence the threshold, are low. ``indices``
    are the numbers of the objects of ``box`` on which the shares are measured.
    """
    present, absent = [], []
    for asset, views, truth in _classified(probe, box, indices):
        probability, visible = combine_views(views).part, truth.seen.amax(0)
        for word in NOUNS[asset.noun].wears:
            column = probe.labels.words.index(word)
            if visible[column] == 1:
                present.append(float(probability[column]))
            elif word not in asset.labels:
                absent.append(float(probability[column]))
    probe.threshold = equal_error(present, absent)
    return probe.threshold


def _classified(probe: Probe, box: Toybox, indices: Sequence[int]) -> Iterator[tuple[Asset, Answers, Truth]]:
    n_view, size, chunk = 4, 128, 32
    for start in range(0, len(indices), chunk):
        assets, rgb, truth = labelled(box, indices[start : start + chunk], size, n_view, probe.labels)
        views = probe.classify(torch.from_numpy(rgb))
        for k, asset in enumerate(assets):
            part = slice(k * n_view, (k + 1) * n_view)
            yield asset, views[part], truth[part]
