"""What a benchmark leaves for people: report.html, which stands alone, report.md, and the same as JSON and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.evaluation.metrics.figures import Share
from threedgen.evaluation.tables import between, finish, limits, markdown_table, percent
from threedgen.geometry.picture_file import load_image
from threedgen.run.disk import write_atomic, writing
from threedgen.run.folder import flat
from threedgen.run.metrics import csv_table
from threedgen.run.text import clean
from threedgen.train.task import Task
from threedgen.viewer.page import jpeg, page

from .meter import view_labels
from .rates import ErrorRates
from .results import Result, Row

HEAD = (
    "method", "Janus rate", "95 %", "corrected", "95 %", "no front", "right side", "R-Precision", "Janus of these",
    "seconds", "memory",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What was found. ``left_out``: prompts and files that were not looked at -> why."""

    task: Task
    rows: Sequence[Row]
    results: Sequence[Result]
    rates: ErrorRates | None
    left_out: dict[str, str]

    def finish(self) -> None:
        """Writes all files and the summary. The views are read from RUN/looks."""
        config, rates, folder = self.task.config, self.rates, self.task.folder
        with writing(folder / "report.html"):
            figures = {
                "meter": config.meter.model_dump(mode="json"),
                "errors": rates.plain() if rates else None,
                "truth": config.truth.model_dump(mode="json") if rates else None,
                "methods": list(self.rows),
                "left_out": self.left_out,
                "assets": [result.plain() for result in self.results],
            }
            write_atomic(folder / "methods.csv", csv_table([line(row) for row in self.rows]))
            write_atomic(folder / "assets.csv", csv_table([asset(result) for result in self.results]))
            write_atomic(folder / "report.html", self.html(folder))
            finish(self.task, "report", self.text(), figures, self.text())

    def of(self, row: Row) -> list[Result]:
        """Lists the assets of a row."""
        return [result for result in self.results if result.method == row["method"]]

    def about(self) -> list[str]:
        """Words the sentences without which the figures mean nothing."""
        config, rates = self.task.config, self.rates
        meter, threshold = config.meter, rates.threshold if rates else config.meter.threshold
        free = getattr(config, "orientation", "known") == "free"
        turn = ", after the turn of the asset that makes most of them right." if free else "."
        lines = [
            f"Each asset is seen from {meter.n_view} sides at elevation {meter.elevation:g}; the classifier "
            f"{meter.classifier.name} ({meter.classifier.weights}) says which side each view shows. Janus: front is "
            f"the likeliest side, with a probability of {threshold:.3g} or more after averaging with the neighbours, "
            "in two views more than 90 degrees apart.",
            f"Right side: views whose likeliest side is the one that the camera faces{turn} R-Precision: assets whose "
            "own prompt fits their views best of all prompts here; of these alone the Janus rate stands beside it, for "
            "in a vague object a classifier may see anything. Intervals are 95 %: Wilson's, for the corrected rate "
            "Lang and Reiczigel's.",
        ]
        if rates is None:
            return [*lines, "The meter's own errors were not measured, so no rate is corrected."]
        return [
            *lines,
            f"The meter's own errors on {config.truth.assets or 'toybox objects'}: false alarms "
            f"{percent(rates.alarms)}, {limits(rates.alarms)}; recall of two fronts glued together "
            f"{percent(rates.hits)}, {limits(rates.hits)}. Corrected: (raw - false alarms) / (recall - false alarms)."
            + ("" if rates.useful else " They are too alike for any rate to be corrected."),
        ]

    def text(self) -> str:
        """Words report.md."""
        table = markdown_table(HEAD, [[clean(cell).replace("|", "/") for cell in cells(row)] for row in self.rows])
        notes = ["- " + clean(f"{row['method']}: {line}") for row in self.rows for line in remarks(row, self.of(row))]
        notes += [f"- left out: {clean(what)} ({why})" for what, why in self.left_out.items()]
        return "\n".join(["# Janus rates", "", table, "", *notes, "", *self.about()]) + "\n"

    def html(self, folder: Path) -> str:
        """Lays out report.html; every picture is in it."""
        sections = []
        for row in self.rows:
            mine = self.of(row)
            shown = [(result, *strip(folder, result)) for result in mine]
            sections.append({"row": row, "remarks": remarks(row, mine), "assets": shown})
        return page(
            "janus.html",
            (),
            title="Janus rates",
            head=HEAD,
            lines=[cells(row) for row in self.rows],
            about=self.about(),
            sections=sections,
            left_out=self.left_out,
            count=sum(result.state == "seen" for result in self.results),
        )


def cells(row: Row) -> list[str]:
    """Words a row of the table, under ``HEAD``."""
    raw, *others = (Share.of(row[key]) for key in ("raw", "no_front", "right", "match", "recognised"))
    rate, seconds, memory = row["corrected"], row["seconds"], row["memory_mib"]
    return [
        row["method"],
        percent(raw),
        limits(raw),
        "-" if rate["share"] is None else f"{100 * rate['share']:.1f} %",
        between(rate["low"], rate["high"]),
        *map(percent, others),
        "-" if seconds is None else f"{seconds:.3g}",
        "-" if memory is None else f"{memory:.0f} MiB",
    ]


def remarks(row: Row, results: Sequence[Result]) -> list[str]:
    """Words what the figures do not say: how many assets are not among them, and why, each reason once; empty if all
    were seen."""
    words = {"empty": "without anything to see", "unreadable": "unreadable", "failed": "failed", "missing": "not made"}
    counts = ", ".join(f"{row['states'][state]} {word}" for state, word in words.items() if state in row["states"])
    found = (counts, row["reason"], *(result.reason for result in results))
    return list(dict.fromkeys(sentence for sentence in found if sentence))


def line(row: Row) -> dict[str, Any]:
    """Makes a line of methods.csv: nested keys joined by underscores."""
    return {key.replace(".", "_"): value for key, value in flat(row).items() if value != {}}


def asset(result: Result) -> dict[str, Any]:
    """Makes a line of assets.csv: without the long lists."""
    views = {"views": len(result.sides), "right_views": sum(result.right), "front_views": sum(result.shown)}
    return {key: value for key, value in result.plain().items() if not isinstance(value, list)} | views


def strip(folder: Path, result: Result) -> tuple[Any, list[tuple[str, bool, bool]]]:
    """Gives the strip of an asset as a JPEG within the page, None if there is none or it is damaged, and of each view
    the meter's word, whether it counts as a front and whether it is right."""
    if result.state != "seen":
        return None, []
    views = view_labels(np.array(result.sides))
    try:
        picture = load_image(folder / "looks" / f"{Path(result.folder).name}.png")
    except ConfigError:
        return None, []
    return jpeg(picture), list(zip(views, result.shown, result.right, strict=True))
