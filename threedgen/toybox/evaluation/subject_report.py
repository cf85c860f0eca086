"""Comparison of priors that were tuned on photos of subjects with the base prior: figures and a Markdown table.

Subjects are unusual toybox objects. The base prior is the one before the tuning.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from threedgen.evaluation.metrics.figures import (
    Estimate,
    Json,
    Proportion,
    bootstrap,
    estimate,
    mean_estimate,
    median,
    proportion_of_groups,
)
from threedgen.evaluation.report import format_estimate, format_rate, markdown_table

NAMES = {"l1": "preservation L1", "l2": "preservation L2", "images": "class images", "lora": "LoRA", "none": "none"}
Rows = Sequence[Json]
"""Measurements of the subjects, one dict each: "subject" is the name of the subject's folder, "found" a dict.

The key "base" of "found" has the measurements of the base prior. Every other key is a row of the report's table, such
as "l1", and has the measurements of the prior that was tuned by this method."""


def row_key(method: str, strength: float) -> str:
    return method if strength == 1 else f"{method}-{strength:g}"


def row_name(key: str) -> str:
    method, _, strength = key.partition("-")
    return f"{NAMES[method]}, strength {strength}" if strength else NAMES[method]


def compare(rows: Rows, key: str) -> Json:
    """Return JSON that compares priors tuned on photos of subjects with the base prior, for one method of tuning.

    The base prior is the one before the tuning, and a method keeps it from forgetting other objects. Each subject, an
    unusual toybox object, has its own tuned prior. Prompts of a subject contain the identifier, a word for the subject;
    prompts of its class are the same without this word. Of these, the base prior gets only the latter.

    Args:
        rows: one dict per subject. Its entry "found" maps "base" and ``key`` to the measurements of the base prior and
            of the tuned prior: similarity to the subject, answers and share of right answers for each prompt
            (`Subjects.measure_tuned`).
        key: method, such as "l1" (L1 penalty on the change of the weights), or method and strength (factor on the
            change of the weights), such as "l1-0.8".

    Returns:
        The first five values are dicts with the mean under "mean", and its 95 % interval over subjects under "low" and
        "high"; these are None for a single subject.
        "identity": mean similarity of the tuned priors' samples for prompts of the subject to true views of the
            subject.
        "identity_gain": difference in "identity", tuned minus base.
        "own_change": difference in the share of right answers of the probe (an image classifier), tuned minus base. The
            tuned priors get the prompts of the subject.
        "class_change": the same difference, but the tuned priors get the prompts of the class.
        "held_out_change": the same difference, but all priors get prompts of other objects that training excludes.
        "order": share of samples whose views show the sides in the right order, for the tuned priors and the prompts of
            the subject: a dict with "hits", "total", "share", "low" and "high" (95 % interval).
        "bound": share of samples that show the accessory in its colour, for those of these prompts that name one: such
            a dict.
        "seconds": median duration of the tuning runs; None if unknown.
    """
    tuned, base = ([row["found"][name] for row in rows] for name in (key, "base"))

    def difference(ours: Sequence[Sequence[float]], name: str) -> Estimate:
        theirs = [found[name] for found in base]
        return mean_estimate([np.mean(a) - np.mean(b) for a, b in zip(ours, theirs, strict=True)])

    def correct(name: str) -> Json:
        return proportion_of_groups([answer[name] for answer in found["answers"]] for found in tuned).plain()

    identity = [found["identity"] for found in tuned]
    return {
        "identity": estimate(float(np.mean(identity)), bootstrap([float(np.mean(own)) for own in identity])),
        "identity_gain": difference(identity, "identity"),
        "own_change": difference([found["scores"] for found in tuned], "scores"),
        "class_change": difference([found["class"]["scores"] for found in tuned], "scores"),
        "held_out_change": difference([found["held_out"] for found in tuned], "held_out"),
        "order": correct("order"),
        "bound": correct("bound"),
        "seconds": median([found.get("seconds") for found in tuned]),
    }


def table(figures: Mapping[str, Json]) -> str:
    def difference(found: Estimate, scale: float, digits: int) -> str:
        value, *limits = (f"{scale * one:+.{digits}f}" for one in found.values() if one is not None)
        return f"{value} ({' to '.join(limits)})" if limits else value

    heads = ["", "identity", "more than the base", "sides in order", "accessory in its colour",
             "its prompts, points", "class prompts, points", "held-out prompts, points", "seconds"]  # fmt: skip
    rows = []
    for key, found in figures.items():
        cells = [row_name(key), format_estimate(found["identity"]), difference(found["identity_gain"], 1, 3)]
        cells += [format_rate(Proportion.of(found[name])) for name in ("order", "bound")]
        cells += [difference(found[name], 100, 1) for name in ("own_change", "class_change", "held_out_change")]
        rows.append([*cells, "-" if found["seconds"] is None else f"{found['seconds']:.0f}"])
    return markdown_table(heads, rows)
