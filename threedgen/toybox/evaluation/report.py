"""Verdicts and report for results of held-out captions, compared with true objects of the same captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from threedgen.evaluation.metrics.figures import Json, median
from threedgen.evaluation.report import format_limits, format_share, markdown_table, rounded, write_report, write_strips
from threedgen.geometry.images import to_uint8
from threedgen.run.arrays import Array
from threedgen.train.task import Task

from .fidelity import distances, fidelity_table
from .held_out import Case
from .judging import FIGURES, Verdict, judge_views, tally
from .probe import Probe

SHEET_KEYS = ("noun", "colour", "bound", "order", "one_front")
"""Keys of the answers that the label of a contact sheet names if they are wrong."""


@dataclass(frozen=True)
class Judged:
    """Judged result for a held-out caption.

    Attributes:
        views: images (V, H, W, 3) of the result, uint8 or in [0, 1].
        verdict: verdict on the result.
        truth: verdicts on true objects of the caption.
        true_views: images (V, H, W, 3), uint8, of two true objects.
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
    """Judge a result and true objects of its caption in the same way.

    Args:
        views: images (V, H, W, 3) of the result, uint8 or in [0, 1].
        azimuth: azimuths (V,) of the cameras, radians.
        true_views: images (V, H, W, 3) of each of two or more true objects.
        calibration: number of true objects to judge.
        vote: whether noun and colour are decided by the majority of the views (`judging.judge`).
        failed: whether the run of the result failed. If so, all its answers are wrong.
    """
    verdict, *truth = (
        judge_views(probe, images, case.spec, azimuth, vote) for images in (views, *true_views[:calibration])
    )
    first, second = (to_uint8(images) for images in true_views[:2])
    return Judged(case, views, verdict.all_wrong() if failed else verdict, truth, (first, second))


def verdict_figures(verdicts: Sequence[Verdict]) -> Json:
    """Return the share of correct answers for each key, and the median azimuth error in degrees, as JSON."""
    shares = {key: figure.plain() for key, figure in tally(verdicts).items()}
    return shares | {"azimuth_error_median": median([verdict.azimuth_error for verdict in verdicts])}


def verdict_table(measured: Sequence[Verdict], truth: Sequence[Verdict], keys: Sequence[str]) -> str:
    """Return a Markdown table of the shares of correct answers, for results and for true objects. Rows are ``keys``."""
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
    """Return the label of a contact sheet cell: "ok", or the wrong answers and what the probe finds."""
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
    """Write report.json, report.md, sheet.png and the summary of the run.

    Args:
        keys: keys of `FIGURES` for the rows of the table.
        intro, notes: text before and after the tables.
        figures: first entries of report.json.
        shown: maps the indices of rows to their images (V, H, W, 3) on the contact sheet.
        own: further entries of each object in report.json.
        fidelity: further distances to the truth, for `fidelity_table`.
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
