"""Writes what an evaluation found: report.json, report.md and a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.config.plain_file import read_json
from threedgen.evaluation.metrics.figures import median
from threedgen.evaluation.tables import finish, limits, markdown_table, percent, rounded, write_report
from threedgen.geometry.images import grid, write_png

from .fidelity import fidelity_table
from .held_out import Case
from .judging import FIGURES, Verdict, tally
from .options import EvaluationConfig
from .probe import locate

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
    wrong, words = verdict.wrong(PART_OF_SHEET), verdict.words
    seen = ", ".join(filter(None, (f"{words['colour']} {words['noun']}", words.get("part"))))
    return f"{'+'.join(wrong)}: {seen}" if wrong else "ok"


def report_scores(
    config: EvaluationConfig,
    begun: float,
    cases: Sequence[Case],
    measured: Sequence[Verdict],
    truth: Sequence[Verdict],
    keys: Sequence[str],
    text: tuple[str, str],
    about: dict[str, Any],
    shown: Mapping[int, np.ndarray],
    own: Sequence[dict[str, Any]] | None = None,
    fidelity: dict[str, Any] | None = None,
    **summary: Any,
) -> int:
    """Writes report.json, report.md, sheet.png and the summary of an evaluation of held-out prompts; returns 0.

    ``text``: what report.md says before and after its table of ``keys``; ``about``: what report.json says first, and
    ``own`` of each object; ``fidelity``: figures for ``fidelity_table``; ``shown``: number of an object -> its views
    (V, H, W, 3) on the sheet.
    """
    folder, captions = Path(str(config.out)), [case.caption for case in cases]
    figures = (
        about
        | ({"fidelity": rounded(fidelity)} if fidelity else {})
        | {
            "measured": figures_plain(measured),
            "probe_on_truth": figures_plain(truth),
            "probe_accuracy": read_json(locate(config.probe.weights).with_suffix(".json")).get("accuracy"),
            "objects": [
                {"caption": caption, **more, **verdict.plain()}
                for caption, more, verdict in zip(captions, own or [{}] * len(cases), measured, strict=True)
            ],
        }
    )
    near = (fidelity_table(fidelity),) if fidelity else ()
    parts = (text[0], table(measured, truth, keys), *near, text[1])
    write_report(folder, "\n\n".join(parts) + "\n", figures)
    if shown:
        labels = [f"{captions[k]} - {mark(measured[k])}" for k in shown]
        write_png(folder / "sheet.png", grid([grid(views, len(views)) for views in shown.values()], 2, labels))
    return finish(config, begun, "report.md", **summary)
