"""What an evaluation writes down, and what a person sees while it goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.evaluation.metrics.figures import Share
from threedgen.geometry.images import grid, write_png
from threedgen.run.folder import write_atomic

from .judging import FIGURES, Verdict, azimuth_error, tally

PART_OF_SHEET = ("noun", "colour", "bound", "order", "one_front")
"""Wrong answers to these are named under a picture."""


def percent(figure: Share | None) -> str:
    """"97.5 % (195/200)", or a dash."""
    if figure is None or figure.value is None:
        return "-"
    return f"{100 * figure.value:.1f} % ({figure.hits}/{figure.total})"


def limits(figure: Share | None) -> str:
    """The 95 % interval: "94.3 - 98.9 %"."""
    if figure is None or figure.interval is None:
        return "-"
    low, high = figure.interval
    return f"{100 * low:.1f} - {100 * high:.1f} %"


def figures_plain(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """All shares of some verdicts for JSON, with the median azimuth error in degrees."""
    shares = {key: figure.plain() for key, figure in tally(verdicts).items()}
    return shares | {"azimuth_error_median": azimuth_error(verdicts)}


def table(measured: Sequence[Verdict], truth: Sequence[Verdict], keys: Sequence[str]) -> str:
    """Markdown: what was measured beside what the probe makes of the ground truth of the same captions."""
    ours, theirs = tally(measured), tally(truth)
    lines = ["| what | measured | 95 % interval | probe on ground truth | 95 % interval |", "|---|---|---|---|---|"]
    for key in keys:
        if key in ours or key in theirs:
            cells = [FIGURES[key]]
            for figure in (ours.get(key), theirs.get(key)):
                cells += [percent(figure), limits(figure)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def worst(captions: Sequence[str], verdicts: Sequence[Verdict], count: int) -> list[dict[str, Any]]:
    """The objects least like what was asked for: those with the most wrong answers, then the least certain."""
    def rank(k: int) -> tuple[int, float]:
        return -len(verdicts[k].wrong(PART_OF_SHEET)), verdicts[k].certainty

    order = sorted(range(len(verdicts)), key=rank)[:count]
    return [
        {"number": k, "caption": captions[k], "wrong": verdicts[k].wrong(PART_OF_SHEET), "said": verdicts[k].said}
        for k in order
    ]


def worst_text(rows: Sequence[dict[str, Any]]) -> str:
    """The same as a markdown list."""
    lines = []
    for row in rows:
        wrong = ", ".join(FIGURES[key] for key in row["wrong"]) or "nothing wrong"
        lines.append(f"- {row['number']}: {row['caption']} - {wrong} (seen: {said(row['said'])})")
    return "\n".join(lines) or "none"


def said(words: dict[str, str]) -> str:
    """"blue dog, red hat": what the probe sees."""
    part = words.get("part")
    return f"{words['colour']} {words['noun']}" + (f", {part}" if part else "")


def mark(verdict: Verdict) -> str:
    """"ok", or what is wrong and what was seen instead; for the line under a picture."""
    wrong = verdict.wrong(PART_OF_SHEET)
    return "ok" if not wrong else f"{'+'.join(wrong)}: {said(verdict.said)}"


def strip(views: np.ndarray) -> np.ndarray:
    """Views (V, H, W, 3) side by side as one picture."""
    return grid(views, len(views))


def write_sheet(
    path: Path, views: Sequence[np.ndarray], captions: Sequence[str], verdicts: Sequence[Verdict], columns: int = 2
) -> Path | None:
    """A contact sheet: each object a strip of views, below it its caption and the verdict."""
    if not views:
        return None
    labels = [f"{caption} - {mark(verdict)}" for caption, verdict in zip(captions, verdicts, strict=True)]
    return write_png(path, grid([strip(v) for v in views], columns, labels))


def write_report(folder: Path, text: str, figures: dict[str, Any]) -> None:
    """report.md and report.json."""
    write_atomic(folder / "report.md", text)
    write_atomic(folder / "report.json", json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
