"""Reports of evaluations: number formats, Markdown tables, JSON files and contact sheets."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from threedgen.geometry.images import grid, to_uint8, write_png
from threedgen.run.arrays import Array
from threedgen.run.disk import write_atomic, write_json
from threedgen.run.metrics import csv_table
from threedgen.run.text import say
from threedgen.train.task import Task

from .metrics.figures import Estimate, Json, Proportion

SHEET_PIXELS = 96  # maximum side of a view in pixels on contact sheets of many views


def format_proportion(figure: Proportion | None) -> str:
    """Format a proportion like "97.5 % (195/200)"; "-" if it is undefined."""
    if figure is None or figure.value is None:
        return "-"
    return f"{100 * figure.value:.1f} % ({figure.hits}/{figure.total})"


def format_rate(figure: Proportion | None) -> str:
    """Format a proportion and its 95 % interval like "97.5 % (195/200; 94.3 - 98.9 %)"; "-" if it is undefined."""
    text, limits = format_proportion(figure), format_limits(figure)
    return text if limits == "-" else f"{text[:-1]}; {limits})"


def format_limits(figure: Proportion | None) -> str:
    """Format the 95 % interval of a proportion like "94.3 - 98.9 %"; "-" if it is undefined."""
    return format_range(*((figure and figure.interval) or (None, None)))


def format_range(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{100 * low:.1f} - {100 * high:.1f} %"


def format_estimate(figure: Estimate | None) -> str:
    """Format a number with its 95 % interval like "0.667 (0.650 - 0.684)"; "-" if the number is undefined.

    Numbers below 0.1, such as a KID, have five decimals.
    """
    if not figure or (value := figure["mean"]) is None:
        return "-"
    low, high, digits = figure["low"], figure["high"], 5 if abs(value) < 0.1 else 3
    interval = "" if low is None or high is None else f" ({low:.{digits}f} - {high:.{digits}f})"
    return f"{value:.{digits}f}{interval}"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def figure_table(first_head: str, rows: Mapping[str, Json], heads: Mapping[str, str]) -> str:
    """Return a Markdown table with one row per name and one column per metric.

    Args:
        first_head: head of the column of row names.
        rows: maps the name of a row to a dict of its metrics. A metric is an `Estimate` (dict with "mean", "low" and
            "high"), a proportion (dict with "hits", "total", "low" and "high"), a number, or missing.
        heads: maps the key of a metric to the head of its column. Columns without any defined metric are left out.
    """

    def cell(value: Any) -> str:
        if isinstance(value, dict):
            return format_rate(Proportion.of(value)) if "hits" in value else format_estimate(value)
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    cells = {name: {key: cell(row[key]) for key in heads if row.get(key) is not None} for name, row in rows.items()}
    shown = [key for key in heads if any(row.get(key, "-") != "-" for row in cells.values())]
    lines = [[name, *(row.get(key, "-") for key in shown)] for name, row in cells.items()]
    return markdown_table([first_head, *(heads[key] for key in shown)], lines)


def rounded(value: Any) -> Any:
    """Return a copy of nested dicts and lists in which all floats are rounded to five significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def csv_tables(figures: Json) -> dict[str, str]:
    """Return CSV text for each entry of a report that is a table: a list of dicts, or a dict of dicts by name.

    The result maps the key of an entry to its text. The key "" has the entries that are a single figure with an
    interval. Columns of nested dicts have names like "raw.low"; lists in a row are left out.
    """

    def cells(row: Json, prefix: str = "") -> Json:
        found: Json = {}
        for key, value in row.items():
            if isinstance(value, dict):
                found |= cells(value, f"{prefix}{key}.")
            elif not isinstance(value, list | tuple):
                found[f"{prefix}{key}"] = value
        return found

    single = {key: value for key, value in figures.items() if isinstance(value, dict) and "low" in value}
    texts = dict[str, str]()
    for key, table in {"": single, **figures}.items():
        if isinstance(table, dict) and all(isinstance(row, dict) for row in table.values()):
            table = [{"name": name, **row} for name, row in table.items()]
        if isinstance(table, list) and table and all(isinstance(row, dict) for row in table):
            texts[key.replace(" ", "-")] = csv_table(list(map(cells, table)))
    return texts


def write_report(
    task: Task,
    name: str,
    figures: Json,
    text: str,
    printed: str = "",
    tables: Mapping[str, str] | None = None,
    summary: Json | None = None,
) -> None:
    """Write the report NAME.json and NAME.md to the run folder, and summary.json, which marks the run as finished.

    The tables in NAME.json are also written as NAME-KEY.csv, and single figures as NAME.csv (`csv_tables`).

    Args:
        task: run of the evaluation.
        name: NAME of the two files.
        figures: content of NAME.json.
        text: content of NAME.md.
        printed: text for stdout; it is not printed if the task is quiet.
        tables: maps the names of further text files to their contents.
        summary: further entries of summary.json.
    """
    csv_files = {f"{name}{key and '-'}{key}.csv": content for key, content in csv_tables(figures).items()}
    for file, content in (csv_files | dict(tables or {})).items():
        write_atomic(task.folder / file, content)
    write_json(task.folder / f"{name}.json", figures)
    write_atomic(task.folder / f"{name}.md", text)
    task.summarise(files=[f"{name}.md", f"{name}.json", *csv_files], **(summary or {}))
    if printed and not task.quiet:
        say(printed)


def write_strips(path: Path, strips: Iterable[Array], labels: Sequence[str], columns: int = 1) -> None:
    """Write a PNG contact sheet with ``columns`` labelled cells per row. Without strips, no file is written.

    Each strip is one cell: images (V, H, W, 3), uint8 or floats in [0, 1], side by side. ``labels`` has one text per
    strip, which is printed below it.
    """
    if cells := [grid(strip, len(strip)) for strip in strips]:
        write_png(path, grid(cells, columns, labels))


def thumbnails(images: Array, max_size: int = SHEET_PIXELS) -> Array:
    """Shrink square images (V, H, H, 3), uint8 or floats in [0, 1], to sides of at most ``max_size``; return uint8."""
    size = min(max_size, *images.shape[1:3])
    small = [Image.fromarray(image).resize((size, size), Image.Resampling.BOX) for image in to_uint8(images)]
    return np.stack([np.asarray(image) for image in small])
