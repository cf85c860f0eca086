"""What the evaluations of held-out captions share: results judged beside the truth; report and contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from threedgen.evaluation.metrics.figures import median
from threedgen.evaluation.tables import finish, limits, markdown_table, percent, rounded, write_strips
from threedgen.geometry.images import to_uint8
from threedgen.train.task import Task

from .fidelity import distances, fidelity_table
from .held_out import Case
from .judging import FIGURES, Verdict, judge_pictures, tally
from .probe import Probe

PART_OF_SHEET = ("noun", "colour", "bound", "order", "one_front")
"""Wrong answers to these are named under a picture."""


def figures_plain(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Gives all shares of some verdicts for JSON, with the median azimuth error in degrees."""
    shares = {key: figure.plain() for key, figure in tally(verdicts).items()}
    return shares | {"azimuth_error_median": median([verdict.azimuth_error for verdict in verdicts])}


def table(measured: Sequence[Verdict], truth: Sequence[Verdict], keys: Sequence[str]) -> str:
    """Tabulates in markdown what was measured beside what the probe makes of the ground truth of the same captions."""
    ours, theirs = tally(measured), tally(truth)
    heads = ["what", "measured", "95 % interval", "probe on ground truth", "95 % interval"]
    asked = [key for key in keys if key in ours or key in theirs]
    cells = {key: [words(shares.get(key)) for shares in (ours, theirs) for words in (percent, limits)] for key in asked}
    return markdown_table(heads, [[FIGURES[key], *cells[key]] for key in asked])


def mark(verdict: Verdict) -> str:
    """Words a verdict for the line under a picture: "ok", or what is wrong and what was seen instead."""
    words, wrong = verdict.words, [key for key in PART_OF_SHEET if verdict.answers.get(key) is False]
    seen = ", ".join(filter(None, (f"{words['colour']} {words['noun']}", words.get("part"))))
    return f"{'+'.join(wrong)}: {seen}" if wrong else "ok"


class Scores:
    """Collects what the probe says of results for held-out captions, and of fresh true objects of the same captions;
    then writes the report. Raises ConfigError if there is no probe."""

    def __init__(self, task: Task) -> None:
        self.task, self.probe = task, Probe.load(task.config.probe.weights)
        self.cases: list[Case] = []
        self.views: list[np.ndarray] = []
        self.measured, self.truth = list[Verdict](), list[Verdict]()
        self.draws: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def add(
        self,
        case: Case,
        views: np.ndarray,
        azimuth: np.ndarray,
        real: Sequence[np.ndarray],
        calibration: int = 1,
        vote: bool = False,
        failed: bool = False,
    ) -> None:
        """Judges the views (V, H, W, 3) of a result, from cameras at ``azimuth`` (V,), and of ``calibration`` of the
        ``real`` objects, two at least, of which the first two are the draws of the truth."""
        verdict, *theirs = (
            judge_pictures(self.probe, seen, case.spec, azimuth, vote) for seen in (views, *real[:calibration])
        )
        self.measured.append(verdict.all_wrong() if failed else verdict)
        self.truth += theirs
        self.cases.append(case)
        self.views.append(views)
        for draw, rgb in zip(self.draws, real, strict=False):
            draw.append(to_uint8(rgb))

    def report(
        self,
        keys: Sequence[str],
        before: str,
        after: str,
        about: dict[str, Any],
        shown: Mapping[int, np.ndarray],
        own: Sequence[dict[str, Any]] | None = None,
        near: dict[str, Any] | None = None,
        **summary: Any,
    ) -> None:
        """Writes report.json, report.md, sheet.png and the summary.

        ``before`` and ``after`` the table of ``keys`` report.md says this; ``about``: what report.json says first, and
        ``own`` of each object; ``near``: how near the results are to the truth, beside the distances of the pictures;
        ``shown``: number of an object -> its views (V, H, W, 3) on the sheet.
        """
        captions, task = [case.caption for case in self.cases], self.task
        fidelity = (near or {}) | (distances(self.probe, self.views, *self.draws) if len(captions) > 1 else {})
        figures = about | ({"fidelity": rounded(fidelity)} if fidelity else {})
        figures |= {
            "measured": figures_plain(self.measured),
            "probe_on_truth": figures_plain(self.truth),
            "probe_accuracy": self.probe.accuracy,
            "objects": [
                {"caption": caption, **more, **verdict.plain()}
                for caption, more, verdict in zip(captions, own or [{}] * len(captions), self.measured, strict=True)
            ],
        }
        labels = [f"{captions[k]} - {mark(self.measured[k])}" for k in shown]
        write_strips(task.folder / "sheet.png", shown.values(), labels, 2)
        parts = (
            before,
            table(self.measured, self.truth, keys),
            *([fidelity_table(fidelity)] if fidelity else []),
            after,
        )
        finish(task, "report", "\n\n".join(parts) + "\n", figures, **summary)
