"""What a benchmark leaves for people: report.html, which stands alone, report.md, and the same as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from threedgen.evaluation.toybox.report import limits, percent
from threedgen.run.folder import write_atomic, writing
from threedgen.run.metrics import write_summary
from threedgen.run.text import clean, duration, say
from threedgen.viewer.page import REMEDY, data_uri, page

from .options import MeteredConfig
from .rates import ErrorRates
from .results import Result, Row

HEAD = (
    "method", "Janus rate", "95 %", "corrected", "95 %", "no front", "right side", "R-Precision", "Janus of these",
    "seconds", "memory",
)  # fmt: skip


def finish(
    config: MeteredConfig,
    table: Sequence[Row],
    results: Sequence[Result],
    rates: ErrorRates | None,
    left_out: dict[str, str],
    seconds: float,
    quiet: bool,
) -> int:
    """Writes the report and the summary of a run, and says where they are; returns the exit code."""
    folder = Path(str(config.out))
    write(folder, config, table, results, rates, left_out)
    write_summary(folder, config, seconds, status="finished")
    if not quiet:
        say((folder / "report.md").read_text(encoding="utf-8"))
    say(str(folder / "report.html"))
    return 0


def write(
    folder: Path,
    config: MeteredConfig,
    table: Sequence[Row],
    results: Sequence[Result],
    rates: ErrorRates | None,
    left_out: dict[str, str],
) -> None:
    """Writes all files of the report into ``folder``; the views are read from ``folder``/looks."""
    with writing(folder / "report.html", REMEDY):
        figures = {
            "meter": config.meter.model_dump(mode="json"),
            "errors": rates.plain() if rates else None,
            "truth": config.truth.model_dump(mode="json") if rates else None,
            "methods": [row.plain() for row in table],
            "left_out": left_out,
            "assets": [result.plain() for result in results],
        }
        write_atomic(folder / "report.json", json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_atomic(folder / "methods.csv", table_csv([flat(row.plain()) for row in table]))
        write_atomic(folder / "assets.csv", table_csv([flat(asset(result)) for result in results]))
        write_atomic(folder / "report.md", text(config, table, rates, left_out))
        write_atomic(folder / "report.html", html(folder, config, table, results, rates, left_out))


# --- words -------------------------------------------------------------------------------------------------------


def cells(row: Row) -> list[str]:
    """A row of the table as people read it, under ``HEAD``."""
    low, high = row.interval or (0.0, 0.0)
    return [
        row.method,
        percent(row.raw),
        limits(row.raw),
        "-" if row.corrected is None else f"{100 * row.corrected:.1f} %",
        "-" if row.interval is None else f"{100 * low:.1f} - {100 * high:.1f} %",
        percent(row.no_front),
        percent(row.right),
        percent(row.match),
        percent(row.recognised),
        "-" if row.seconds is None else f"{row.seconds:.3g}",
        "-" if row.memory_mib is None else f"{row.memory_mib:.0f} MiB",
    ]


def remark(row: Row) -> str:
    """What the figures do not say: assets that are not among them, and why; empty if all were seen."""
    words = {"empty": "without anything to see", "failed": "failed", "missing": "not made"}
    counts = [f"{row.states[state]} {word}" for state, word in words.items() if state in row.states]
    parts = [", ".join(counts)] if counts else []
    return ": ".join(parts + [row.reason]) if row.reason else "".join(parts)


def about(config: MeteredConfig, rates: ErrorRates | None) -> list[str]:
    """The sentences without which the figures mean nothing."""
    meter = config.meter
    threshold = rates.threshold if rates else meter.threshold
    free = getattr(config, "orientation", "known") == "free"
    lines = [
        f"Each asset is seen from {meter.n_view} sides at elevation {meter.elevation:g}; the classifier "
        f"{meter.classifier.name} ({meter.classifier.weights}) says which side each view shows. Janus: front is the "
        f"likeliest side, with a probability of {threshold:.3g} or more after averaging with the neighbours, in two "
        "views more than 90 degrees apart.",
        "Right side: views whose likeliest side is the one that the camera faces"
        + (", after the turn of the asset that makes most of them right." if free else ".")
        + " R-Precision: assets whose own prompt fits their views best of all prompts here; of these alone the Janus "
        "rate stands beside it, for in a vague object a classifier may see anything. Intervals are 95 %: "
        "Wilson's, for the corrected rate Lang and Reiczigel's.",
    ]
    if rates is None:
        return [*lines, "The meter's own errors were not measured, so no rate is corrected."]
    truth = config.truth.assets or "toybox objects"
    return [
        *lines,
        f"The meter's own errors on {truth}: false alarms {percent(rates.alarms)}, {limits(rates.alarms)}; recall of "
        f"two fronts glued together {percent(rates.hits)}, {limits(rates.hits)}. Corrected: (raw - false alarms) / "
        "(recall - false alarms)." + ("" if rates.useful else " They are too alike for any rate to be corrected."),
    ]


def text(config: MeteredConfig, table: Sequence[Row], rates: ErrorRates | None, left_out: dict[str, str]) -> str:
    """report.md"""
    lines = ["# Janus rates", "", f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    lines += [f"| {' | '.join(clean(cell).replace('|', '/') for cell in cells(row))} |" for row in table]
    lines += [""] + [f"- {clean(f'{row.method}: {remark(row)}')}" for row in table if remark(row)]
    lines += [f"- left out: {clean(prompt)} (a {noun} has no front)" for prompt, noun in left_out.items()]
    return "\n".join([*lines, "", *about(config, rates)]) + "\n"


# --- tables for programs -----------------------------------------------------------------------------------------


def asset(result: Result) -> dict[str, Any]:
    """A line of assets.csv: without the long lists."""
    plain = result.plain()
    views = {"views": len(result.sides), "right_views": sum(result.right), "front_views": sum(result.shown)}
    return {key: value for key, value in plain.items() if not isinstance(value, list)} | views


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by underscores."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}_")
        else:
            found[prefix + key] = value
    return found


def table_csv(lines: Sequence[dict[str, Any]]) -> str:
    """A column for each key, in the order of appearance."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


# --- the page ----------------------------------------------------------------------------------------------------


def html(
    folder: Path,
    config: MeteredConfig,
    table: Sequence[Row],
    results: Sequence[Result],
    rates: ErrorRates | None,
    left_out: dict[str, str],
) -> str:
    """report.html; every picture is in it."""
    sections = [
        {"row": row, "remark": remark(row), "assets": [card(folder, r) for r in results if r.method == row.method]}
        for row in table
    ]
    return page(
        "janus.html",
        (),
        title="Janus rates",
        head=HEAD,
        lines=[cells(row) for row in table],
        about=about(config, rates),
        sections=sections,
        left_out=left_out,
        count=sum(result.state == "seen" for result in results),
    )


def card(folder: Path, result: Result) -> dict[str, Any]:
    """An asset as the page shows it: its strip of views and the meter's word on each."""
    outcome = f"{result.fronts} front{'s' * (result.fronts != 1)}" if result.state == "seen" else result.state
    facts = [f"seed {result.seed}"] if result.seed is not None else []
    facts += [duration(result.seconds)] if result.seconds is not None else []
    name = Path(result.folder).name
    return {
        "prompt": result.prompt,
        "outcome": outcome,
        "janus": result.janus,
        "reason": result.reason,
        "facts": facts,
        "strip": picture(folder / "looks" / f"{name}.png") if result.state == "seen" else None,
        "views": list(zip(result.labels(), result.shown, result.right, strict=True)),
    }


def picture(path: Path) -> Any:
    """A strip as a JPEG within the page; None if it is damaged."""
    buffer = io.BytesIO()
    try:
        with Image.open(path) as strip:
            strip.convert("RGB").save(buffer, format="JPEG", quality=85)
    except (OSError, ValueError):
        return None
    return data_uri(buffer.getvalue(), ".jpg")
