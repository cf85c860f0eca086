"""Evaluation of results for held-out captions: judged by the probe, beside true objects of the same captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from threedgen.evaluation.metrics.figures import Json, median
from threedgen.evaluation.report import (
    format_limits,
    format_share,
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
"""Wrong answers to these are named on the contact sheet."""


@dataclass(frozen=True)
class Judged:
    """Result for a held-out caption.

    Attributes:
        views: (V, H, W, 3).
        verdict: on the result.
        truth: verdicts on true objects of the caption.
        true_views: views of two true objects, uint8.
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
    """Judge a result, and the first ``calibration`` of at least two true objects, in the same way.

    Args:
        azimuth: of the cameras (V,), radians.
        failed: the result is wrong in everything.
    """
    verdict, *truth = (
        judge_views(probe, images, case.spec, azimuth, vote) for images in (views, *true_views[:calibration])
    )
    first, second = (to_uint8(images) for images in true_views[:2])
    return Judged(case, views, verdict.all_wrong() if failed else verdict, truth, (first, second))


def verdict_figures(verdicts: Sequence[Verdict]) -> Json:
    """Return all shares of some verdicts as JSON, and the median azimuth error in degrees."""
    shares = {key: figure.plain() for key, figure in tally(verdicts).items()}
    return shares | {"azimuth_error_median": median([verdict.azimuth_error for verdict in verdicts])}


def verdict_table(measured: Sequence[Verdict], truth: Sequence[Verdict], keys: Sequence[str]) -> str:
    """Return a table of the results' shares beside those of true objects of the same captions."""
    ours, theirs = tally(measured), tally(truth)
    heads = ["figure", "measured", "95 % interval", "probe on ground truth", "95 % interval"]
    rows = [
        [
            FIGURES[key],
            *(words(shares.get(key)) for shares in (ours, theirs) for words in (format_share, format_limits)),
        ]
        for key in keys
        if key in ours or key in theirs
    ]
    return markdown_table(heads, rows)


def label(verdict: Verdict) -> str:
    """Return the label of a verdict: "ok", or the wrong answers and what the probe found instead."""
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
    """Write report.json, report.md, sheet.png and the summary.

    Args:
        keys: figures of the table.
        intro, notes: text before and after the tables.
        figures: first entries of report.json.
        shown: index of a row -> its views (V, H, W, 3) on the contact sheet.
        own: further figures of each object.
        fidelity: further distances to the truth.
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
