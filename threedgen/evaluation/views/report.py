"""Writes what was found out about views: a table with intervals, differences, figures of each scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from threedgen.evaluation.metrics.figures import (
    Estimate,
    bootstrap_ratio,
    estimate,
    jackknife_estimate,
    mean_estimate,
    paired_differences,
)
from threedgen.evaluation.metrics.overlap import overlap_ratio
from threedgen.evaluation.tables import finish, markdown_table, rounded, with_interval
from threedgen.train.task import Task

from .drawing import ATTENTION, BASE
from .measure import SPLITS, Meter, Row, distances
from .options import EvaluateViewsConfig

TRUTH, OTHER, FOLDER = "truth", "other_truth", "views"
ROWS = {
    TRUTH: "the truth",
    ATTENTION: "with attention between views",
    BASE: "the same base without it",
    FOLDER: "views of the folder",
    OTHER: "other true scenes",
}
MEANS = {
    "psnr": "overlap PSNR, dB",
    "clip": "CLIP score",
    "given": "view 0 to the given picture",
    "given_overlap": "where the next views see it",
    "beside": "view 0 to the next views",
    "beside_given": "the given picture to the next views",
}
FIGURES = {"psnr": MEANS["psnr"], "ratio": "of the truth's", "fid": "FID", "kid": "KID", "is": "Inception score"}
FIGURES |= {"clip": MEANS["clip"]}
GIVEN = {name: words for name, words in MEANS.items() if name not in FIGURES}


def report(task: Task, meter: Meter, about: dict[str, Any]) -> None:
    """Writes report.json, report.md and the summary, and says the table. ``about``: what report.json says first."""
    rows = {row: meter.rows[row] for row in ROWS if row in meter.rows}
    found = {row: summary(mine, rows[TRUTH]) for row, mine in rows.items()}
    less = difference(rows[ATTENTION], rows[BASE], rows[TRUTH]) if ATTENTION in rows else {}
    tables = [table(FIGURES, found, less)]
    if any(found[row].get("given") for row in found):
        tables.append(table(GIVEN, {row: found[row] for row in (TRUTH, ATTENTION, BASE)}, less))
    tree = about | {
        "features": meter.features.about,
        "pictures": {row: sum(len(seen.features) for seen in mine.seen) for row, mine in rows.items()},
        "rows": found,
        "difference": less,
        "scenes": {row: mine.figures for row, mine in rows.items()},
    }
    text = "\n\n".join(tables)
    whole = f"# Views of one scene\n\n{text}\n\n{explained(task.config, meter)}\n"
    finish(task, "report", whole, rounded(tree), text, scenes=len(rows[TRUTH]))


def summary(row: Row, truth: Row) -> dict[str, Any]:
    """Computes all figures of a row with their intervals over the scenes."""
    found: dict[str, Any] = {"scenes": len(row)} | means(row.figures)
    ours, true = row.of("psnr"), truth.of("psnr")
    found["ratio"] = estimate(overlap_ratio(ours, true), bootstrap_ratio(ours, true))
    for name, measure in distances(row, truth).items():
        found[name] = jackknife_estimate(measure, len(row))
    return found


def difference(row: Row, other: Row, truth: Row) -> dict[str, Any]:
    """Computes what a row has more than another one of the same scenes."""
    less = paired_differences(row.figures, other.figures, row.figures[0])
    found: dict[str, Any] = means(less)
    found["psnr"]["won"] = sum((one["psnr"] or 0) > 0 for one in less)
    ours, theirs = distances(row, truth), distances(other, truth)
    for name in ours:

        def measure(kept: Any, name: str = name) -> float:
            return ours[name](kept) - theirs[name](kept)

        found[name] = jackknife_estimate(measure, len(row))
    return found


def means(scenes: list[dict[str, float | None]]) -> dict[str, Estimate]:
    """Averages each figure that any of the scenes has."""
    found = {name: mean_estimate([one.get(name) for one in scenes]) for name in MEANS}
    return {name: figure for name, figure in found.items() if figure["mean"] is not None}


def table(figures: Mapping[str, str], rows: Mapping[str, dict[str, Any]], less: dict[str, Any]) -> str:
    """Tabulates in markdown those of the ``figures`` that any row has."""
    there = [name for name in figures if any(name in row for row in rows.values())]
    lines = {ROWS[row]: found for row, found in rows.items()} | ({"with minus without": less} if less else {})
    cells = [[words, *(with_interval(found.get(name)) for name in there)] for words, found in lines.items()]
    return markdown_table(["views", *(figures[name] for name in there)], cells)


def explained(config: EvaluateViewsConfig, meter: Meter) -> str:
    """Explains what the figures mean and when they may be compared."""
    rows = meter.rows
    how = (
        "The views are those of a folder, the truth is that of other scenes."
        if FOLDER in rows
        else f"Both draw the same captions from the same noise, DDIM {config.steps} steps, guidance "
        f"{config.guidance_scale:g}, seed {config.seed}."
    )
    pictures = sum(len(seen.features) for seen in rows[TRUTH].seen)
    at = f" at {config.overlap_size} pixels a side" if config.overlap_size else ""
    caption = f"\nThe CLIP score is 100 cos of each view with its own caption, by {config.clip}." if config.clip else ""
    return f"""{len(rows[TRUTH])} held-out scenes. {how}

Overlap PSNR{at}: each view against the next one warped into it, of panoramas around the ring and the last with the
first, of paths where the depths of both agree within {config.depth_error:g} m (MVDiffusion, arXiv 2307.01097, section
5). The mean over pairs and scenes; "of the truth's" is the ratio of these means, not the mean of ratios. In brackets
95 % intervals over the scenes: bootstrap of means, jackknife of 20 groups of FID, KID and Inception score.

FID and KID (one unbiased estimate, not scaled) of the views against {pictures} true ones, and the Inception score of
{SPLITS} parts, by {meter.features.about}.
With few pictures FID is too high: compare rows of one table.{caption}"""
