"""Writes what an evaluation found: report.json, report.md and a contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.evaluation.metrics.figures import Share
from threedgen.evaluation.tables import markdown_table, write_json
from threedgen.geometry.images import grid, write_png
from threedgen.run.folder import write_atomic

from .held_out import Case
from .judging import FIGURES, Verdict, azimuth_error, tally
from .options import EvaluationConfig
from .probe import locate, read_card

PART_OF_SHEET = ("noun", "colour", "bound", "order", "one_front")
"""Wrong answers to these are named under a picture."""


def percent(figure: Share | None) -> str:
    """Words a share: "97.5 % (195/200)", or a dash."""
    if figure is None or figure.value is None:
        return "-"
    return f"{100 * figure.value:.1f} % ({figure.hits}/{figure.total})"


def limits(figure: Share | None) -> str:
    """Words the 95 % interval: "94.3 - 98.9 %"."""
    if figure is None or figure.interval is None:
        return "-"
    low, high = figure.interval
    return f"{100 * low:.1f} - {100 * high:.1f} %"


def figures_plain(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Gives all shares of some verdicts for JSON, with the median azimuth error in degrees."""
    shares = {key: figure.plain() for key, figure in tally(verdicts).items()}
    return shares | {"azimuth_error_median": azimuth_error(verdicts)}


def table(measured: Sequence[Verdict], truth: Sequence[Verdict], keys: Sequence[str]) -> str:
    """Tabulates in markdown what was measured beside what the probe makes of the ground truth of the same captions."""
    ours, theirs = tally(measured), tally(truth)
    heads = ["what", "measured", "95 % interval", "probe on ground truth", "95 % interval"]
    return markdown_table(
        heads,
        [
            [FIGURES[key], *(words(shares.get(key)) for shares in (ours, theirs) for words in (percent, limits))]
            for key in keys
            if key in ours or key in theirs
        ],
    )


def worst(captions: Sequence[str], verdicts: Sequence[Verdict], count: int) -> list[dict[str, Any]]:
    """Lists the objects least like what was asked for: most wrong answers first, then the least certain."""

    def rank(k: int) -> tuple[int, float]:
        return -len(verdicts[k].wrong(PART_OF_SHEET)), verdicts[k].certainty

    order = sorted(range(len(verdicts)), key=rank)[:count]
    return [
        {"number": k, "caption": captions[k], "wrong": verdicts[k].wrong(PART_OF_SHEET), "said": verdicts[k].words}
        for k in order
    ]


def worst_text(rows: Sequence[dict[str, Any]]) -> str:
    """Words the same as a markdown list."""
    lines = []
    for row in rows:
        wrong = ", ".join(FIGURES[key] for key in row["wrong"]) or "nothing wrong"
        lines.append(f"- {row['number']}: {row['caption']} - {wrong} (seen: {described(row['said'])})")
    return "\n".join(lines) or "none"


def described(words: dict[str, str]) -> str:
    """Words what the probe sees: "blue dog, red hat"."""
    part = words.get("part")
    return f"{words['colour']} {words['noun']}" + (f", {part}" if part else "")


def mark(verdict: Verdict) -> str:
    """Words a verdict for the line under a picture: "ok", or what is wrong and what was seen instead."""
    wrong = verdict.wrong(PART_OF_SHEET)
    return "ok" if not wrong else f"{'+'.join(wrong)}: {described(verdict.words)}"


def write_scores(
    folder: Path,
    config: EvaluationConfig,
    cases: Sequence[Case],
    measured: Sequence[Verdict],
    truth: Sequence[Verdict],
    keys: Sequence[str],
    text: tuple[str, str],
    about: dict[str, Any],
    shown: Mapping[int, np.ndarray],
    own: Sequence[dict[str, Any]] | None = None,
) -> None:
    """Writes report.json, report.md and sheet.png of an evaluation of held-out prompts.

    ``text``: what report.md says before and after its table of ``keys``; ``about``: what report.json says first, and
    ``own`` of each object; ``shown``: number of an object -> its views (V, H, W, 3) on the sheet.
    """
    captions = [case.caption for case in cases]
    rows = worst(captions, measured, config.worst)
    figures = about | {
        "measured": figures_plain(measured),
        "probe_on_truth": figures_plain(truth),
        "probe_accuracy": read_card(locate(config.probe.weights)).get("accuracy"),
        "worst": rows,
        "objects": [
            {"caption": caption, **more, **verdict.plain()}
            for caption, more, verdict in zip(captions, own or [{}] * len(cases), measured, strict=True)
        ],
    }
    before, after = text
    parts = (before, table(measured, truth, keys), after, "## The worst", worst_text(rows))
    write_report(folder, "\n\n".join(parts) + "\n", figures)
    if shown:
        labels = [f"{captions[k]} - {mark(measured[k])}" for k in shown]
        write_png(folder / "sheet.png", grid([grid(views, len(views)) for views in shown.values()], 2, labels))


def write_report(folder: Path, text: str, figures: dict[str, Any]) -> None:
    """Writes report.md and report.json."""
    write_atomic(folder / "report.md", text)
    write_json(folder / "report.json", figures)
