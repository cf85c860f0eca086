"""Report of samples or 3D objects of held-out captions, compared with ground-truth objects of the same captions.

Held-out captions have combinations of noun, colour and part that training excludes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from threedgen.evaluation.metrics.figures import Json, median
from threedgen.evaluation.report import (
    format_limits,
    format_proportion,
    markdown_table,
    rounded,
    write_report,
    write_strips,
)
from threedgen.geometry.images import to_uint8
from threedgen.run.arrays import Array
from threedgen.train.task import Task

from .fidelity import distances, fidelity_table
from .held_out import Case
from .judging import FIGURES, Verdict, judge_views, tally
from .probe import Probe

SHEET_KEYS = ("noun", "colour", "bound", "order", "one_front")
"""Attributes (keys of `FIGURES`) that the label of an object on the contact sheet lists if their answers are wrong."""


@dataclass(frozen=True)
class Judged:
    """Sampled or generated object of a held-out caption, judged by the probe, and ground-truth objects to compare with.

    Attributes:
        case: specification of the object (noun, colours, parts), with its caption.
        views: images (V, H, W, 3) of the object, uint8 or floats in [0, 1].
        verdict: comparison of the answers of the probe (image classifier) for ``views`` with the specification.
        truth: the same comparison for one or more ground-truth objects of the caption, one verdict per object.
        true_views: images of two ground-truth objects of the caption, to compute FID and KID. Each of the two arrays
            has V images (V, h, w, 3), uint8, of one object, from the cameras of ``views``.
    """

    case: Case
    views: Array
    verdict: Verdict
    truth: list[Verdict]
    true_views: tuple[Array, Array]


def judge_case(
    probe: Probe,
    case: Case,
    views: Array,
    azimuth: Array,
    true_views: Sequence[Array],
    calibration: int = 1,
    vote: bool = False,
    failed: bool = False,
) -> Judged:
    """Judge views of a sampled or generated object, and of ground-truth objects of the same caption, with the probe.

    The probe is an image classifier. A verdict says which of its answers, such as the noun, fit the caption.

    Args:
        case: specification of the object, with its caption.
        views: images (V, H, W, 3) of the object, uint8 or floats in [0, 1].
        azimuth: azimuths (V,) of the cameras, radians, 0 at the front.
        true_views: images (V, H, W, 3) of each of two or more ground-truth objects, from the same cameras.
        calibration: number of ground-truth objects, the first ones of ``true_views``, that are judged too, to measure
            the accuracy of the probe.
        vote: decide noun and colour by majority of the views. Otherwise the class decides whose log-probability,
            averaged over the views, is highest.
        failed: whether the run that generated the object failed. If so, all answers for ``views`` count as wrong.

    Returns:
        ``case`` and ``views`` with the verdict on them, the verdicts on the ``calibration`` ground-truth objects, and
        the images of the first two ground-truth objects as uint8, for FID and KID.
    """
    verdict, *truth = (
        judge_views(probe, images, case.spec, azimuth, vote) for images in (views, *true_views[:calibration])
    )
    first, second = (to_uint8(images) for images in true_views[:2])
    return Judged(case, views, verdict.all_wrong() if failed else verdict, truth, (first, second))


def verdict_figures(verdicts: Sequence[Verdict]) -> Json:
    """Return JSON that summarises verdicts: the share of right answers for each attribute, and the azimuth error.

    There is one verdict per object. It says which attributes of the object, such as its noun and colour, agree with its
    caption, according to the probe (an image classifier). Each attribute with answers is a key, such as "noun" (one of
    `FIGURES`). Its value is a dict with "hits", "total", "share" (hits / total), and the 95 % limits "low" and "high".
    Some attributes, such as "side" (front, left, back or right), have one answer per view instead of one per object.

    "azimuth_error_median" is the median over the objects of the probe's error of the camera azimuth, in degrees.
    Objects without a front or with unknown cameras do not count; it is None if no object counts.
    """
    shares = {key: figure.plain() for key, figure in tally(verdicts).items()}
    return shares | {"azimuth_error_median": median([verdict.azimuth_error for verdict in verdicts])}


def verdict_table(measured: Sequence[Verdict], truth: Sequence[Verdict], keys: Sequence[str]) -> str:
    """Return a Markdown table with the shares of correct answers, for generated objects and ground-truth objects.

    ``measured`` and ``truth`` are the verdicts on these objects. ``keys`` are the attributes to list: keys of
    `FIGURES`, such as "noun". The table has one row for each of them that has answers.
    """
    ours, theirs = tally(measured), tally(truth)
    heads = ["figure", "measured", "95 % interval", "probe on ground truth", "95 % interval"]
    rows = [
        [
            FIGURES[key],
            *(words(shares.get(key)) for shares in (ours, theirs) for words in (format_proportion, format_limits)),
        ]
        for key in keys
        if key in ours or key in theirs
    ]
    return markdown_table(heads, rows)


def label(verdict: Verdict) -> str:
    """Return the label of an object on the contact sheet: "ok", or the wrong attributes and what the probe found.

    For example, the label is "colour: red dog" if only the colour is wrong and the probe found a red dog. The
    attributes are noun, colour, "bound" (part in its colour), "order" (the views show the sides in order) and
    "one_front" (the object shows its front on one side only).
    """
    words, wrong = verdict.words, [key for key in SHEET_KEYS if verdict.answers.get(key) is False]
    found = ", ".join(filter(None, (f"{words['colour']} {words['noun']}", words.get("part"))))
    return f"{'+'.join(wrong)}: {found}" if wrong else "ok"


def write_judged(
    task: Task,
    probe: Probe,
    rows: Sequence[Judged],
    keys: Sequence[str],
    intro: str,
    notes: str,
    figures: Json,
    shown: Mapping[int, Array],
    own: Sequence[Json] | None = None,
    fidelity: Json | None = None,
    summary: Json | None = None,
) -> None:
    """Write report.json, report.md, the contact sheet sheet.png and summary.json to the run folder of ``task``.

    Args:
        probe: image classifier that judged the objects; its features are used for FID and KID.
        rows: judged objects.
        keys: attributes that the table of right answers lists, such as "noun": keys of the dict `FIGURES`, whose values
            are their names in the table. Attributes without answers have no row.
        intro, notes: Markdown before and after the tables.
        figures: first entries of report.json, with any keys, such as the number of prompts. The function adds
            "measured" and "probe_on_truth" (shares of right answers for ``rows`` and for their ground-truth objects),
            "probe_accuracy" (on other objects, measured when the probe was trained), "objects" (caption and verdict of
            each object) and "fidelity" (FID, KID and ``fidelity``).
        shown: dict from index of an object in ``rows`` to its images (V, H, W, 3) on the contact sheet.
        own: one dict with any keys, such as "seconds", for each of ``rows``, to add to its entry in "objects"; or None.
        fidelity: further metrics beside FID and KID, which are computed here if there are two or more objects. The
            table shows "roughness" and "mottle" (patchiness) of the surfaces, beside their values for ground-truth
            objects ("floor_roughness", ...), and the numbers of "translucent" objects and of those "without_surface".
            None: no others.
        summary: further entries of summary.json with any keys, such as "prior"; None: no further entries.
    """
    captions, measured = [row.case.caption for row in rows], [row.verdict for row in rows]
    truth = [verdict for row in rows for verdict in row.truth]
    fidelity = fidelity or {}
    if len(rows) > 1:
        first, second = zip(*(row.true_views for row in rows), strict=True)
        fidelity |= distances(probe, [row.views for row in rows], first, second)
    tree = figures | ({"fidelity": rounded(fidelity)} if fidelity else {})
    tree |= {
        "measured": verdict_figures(measured),
        "probe_on_truth": verdict_figures(truth),
        "probe_accuracy": probe.accuracy,
        "objects": [
            {"caption": caption, **more, **verdict.plain()}
            for caption, more, verdict in zip(captions, own or [{}] * len(rows), measured, strict=True)
        ],
    }
    labels = [f"{captions[k]} - {label(measured[k])}" for k in shown]
    write_strips(task.folder / "sheet.png", shown.values(), labels, 2)
    parts = [intro, verdict_table(measured, truth, keys), *([fidelity_table(fidelity)] if fidelity else []), notes]
    write_report(task, "report", tree, "\n\n".join(parts) + "\n", summary=summary)
