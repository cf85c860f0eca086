"""Report of Janus rates: report.html with embedded images, report.md, report.json, methods.csv and assets.csv."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from threedgen.config.errors import ConfigError
from threedgen.evaluation.metrics.figures import Json, Share
from threedgen.evaluation.report import format_limits, format_range, format_share, markdown_table, write_report
from threedgen.geometry.picture_file import load_image
from threedgen.run.disk import writing
from threedgen.run.folder import flat
from threedgen.run.metrics import csv_table
from threedgen.run.text import clean
from threedgen.train.task import Task
from threedgen.viewer.page import jpeg, page

from .meter import view_labels
from .options import MeteredConfig
from .rates import ErrorRates
from .results import Result

HEADS = (
    "method", "Janus rate", "95 %", "corrected", "95 %", "no front", "right side", "R-Precision", "Janus of these",
    "seconds", "memory",
)  # fmt: skip
READINGS = "looks"
"""Subfolder of the run for the classified views of the objects."""
STATE_NOTES = {"empty": "empty", "unreadable": "unreadable", "failed": "failed", "missing": "not made"}


def write_janus_report(
    task: Task,
    rows: Sequence[Json],
    results: Sequence[Result],
    rates: ErrorRates | None,
    left_out: dict[str, str],
    free: bool,
) -> None:
    """Write all files of the report and the summary of the run.

    Args:
        rows: metrics of each method, from `results.method_row`.
        results: results of all assets.
        rates: error rates of the meter; None if they were not measured.
        left_out: maps each prompt or file that was not evaluated to the reason.
        free: whether the orientation of the assets is unknown.
    """
    config: MeteredConfig = task.config
    of = [[result for result in results if result.method == row["method"]] for row in rows]
    remarks = [notes(row, mine) for row, mine in zip(rows, of, strict=True)]
    about = explanation(config, rates, free)
    figures = {
        "meter": config.meter.model_dump(mode="json"),
        "errors": rates.plain() if rates else None,
        "truth": config.truth.model_dump(mode="json") if rates else None,
        "methods": list(rows),
        "left_out": left_out,
        "assets": [result.plain() for result in results],
    }
    table = markdown_table(HEADS, [[clean(cell).replace("|", "/") for cell in cells(row)] for row in rows])
    lines = ["- " + clean(f"{row['method']}: {note}") for row, each in zip(rows, remarks, strict=True) for note in each]
    lines += [f"- left out: {clean(name)} ({reason})" for name, reason in left_out.items()]
    text = "\n".join(["# Janus rates", "", table, "", *lines, "", *about]) + "\n"
    sections = [
        {"row": row, "remarks": each, "assets": [(result, *strip(task.folder / READINGS, result)) for result in mine]}
        for row, each, mine in zip(rows, remarks, of, strict=True)
    ]
    html = page(
        "janus.html",
        (),
        title="Janus rates",
        head=HEADS,
        lines=[cells(row) for row in rows],
        about=about,
        sections=sections,
        left_out=left_out,
        count=sum(result.state == "seen" for result in results),
    )
    tables = {
        "methods.csv": csv_table([csv_line(row) for row in rows]),
        "assets.csv": csv_table([asset_line(result) for result in results]),
        "report.html": html,
    }
    with writing(task.folder / "report.html"):
        write_report(task, "report", figures, text, text, tables)


def explanation(config: MeteredConfig, rates: ErrorRates | None, free: bool) -> list[str]:
    """Return paragraphs that explain the metrics of the report."""
    meter, threshold = config.meter, rates.threshold if rates else config.meter.threshold
    turn = ", after the rotation of the asset that makes most of them right." if free else "."
    lines = [
        f"Janus: the classifier {meter.classifier.name} ({meter.classifier.weights}) calls front the most probable "
        f"side, with a smoothed probability of at least {threshold:.3g}, in two of {meter.n_view} views that are more "
        f"than 90 degrees apart (elevation {meter.elevation:g}).",
        f"Right side: views whose most probable side is the one that the camera faces{turn} R-Precision: assets whose "
        "own prompt has the highest score of all prompts. Intervals are 95 %: Wilson's, for the corrected rate Lang "
        "and Reiczigel's.",
    ]
    if rates is None:
        return [*lines, "The meter's errors were not measured, so no rate is corrected."]
    alarms, recall = (f"{format_share(one)}, {format_limits(one)}" for one in (rates.alarms, rates.hits))
    return [
        *lines,
        f"Errors of the meter on {config.truth.assets or 'toybox objects'}: false alarms {alarms}; recall of two "
        f"fronts {recall}. Corrected: (raw - false alarms) / (recall - false alarms)."
        + ("" if rates.useful else " They are too similar to correct any rate."),
    ]


def cells(row: Json) -> list[str]:
    """Format the cells of a method's row in the table. The columns are `HEADS`."""
    raw, *others = (Share.of(row[key]) for key in ("raw", "no_front", "right", "match", "recognised"))
    rate, seconds, memory = row["corrected"], row["seconds"], row["memory_mib"]
    return [
        row["method"],
        format_share(raw),
        format_limits(raw),
        "-" if rate["share"] is None else f"{100 * rate['share']:.1f} %",
        format_range(rate["low"], rate["high"]),
        *map(format_share, others),
        "-" if seconds is None else f"{seconds:.3g}",
        "-" if memory is None else f"{memory:.0f} MiB",
    ]


def notes(row: Json, results: Sequence[Result]) -> list[str]:
    """Return remarks on a method: the number of assets that could not be evaluated, and each reason once."""
    counts = ", ".join(
        f"{row['states'][state]} {note}" for state, note in STATE_NOTES.items() if state in row["states"]
    )
    found = (counts, row["reason"], *(result.reason for result in results))
    return list(dict.fromkeys(sentence for sentence in found if sentence))


def csv_line(row: Json) -> Json:
    """Return the cells of a line of methods.csv by column. Nested keys are joined by underscores."""
    return {key.replace(".", "_"): value for key, value in flat(row).items() if value != {}}


def asset_line(result: Result) -> Json:
    """Return the cells of a line of assets.csv by column. Lists are replaced by counts of views."""
    views = {"views": len(result.sides), "right_views": sum(result.right), "front_views": sum(result.shown)}
    return {key: value for key, value in result.plain().items() if not isinstance(value, list)} | views


def strip(folder: Path, result: Result) -> tuple[Markup | None, list[tuple[str, bool, bool]]]:
    """Return the views of an asset for report.html.

    Returns:
        The views side by side as a JPEG data URI, or None if they are missing; and for each view its label, whether it
        shows a front, and whether it shows the correct side.
    """
    if result.state != "seen":
        return None, []
    try:
        image = load_image(folder / f"{Path(result.folder).name}.png")
    except ConfigError:
        return None, []
    return jpeg(image), list(zip(view_labels(np.array(result.sides)), result.shown, result.right, strict=True))
