"""What all evaluations share: tables, figures, files, last words; and what was found once is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from threedgen.config.plain_file import read_json
from threedgen.evaluation.metrics.figures import Estimate, Share
from threedgen.geometry.images import grid, pad_to_same_size, to_uint8, write_png
from threedgen.run.disk import write_atomic, write_json
from threedgen.run.text import say
from threedgen.train.task import Task


def percent(figure: Share | None) -> str:
    """Words a share: "97.5 % (195/200)", or a dash."""
    if figure is None or figure.value is None:
        return "-"
    return f"{100 * figure.value:.1f} % ({figure.hits}/{figure.total})"


def limits(figure: Share | None) -> str:
    """Words the 95 % interval: "94.3 - 98.9 %"."""
    return between(*((figure and figure.interval) or (None, None)))


def between(low: float | None, high: float | None) -> str:
    """Words an interval of shares, if there is one."""
    return "-" if low is None or high is None else f"{100 * low:.1f} - {100 * high:.1f} %"


def with_interval(figure: Estimate | None) -> str:
    """Words a figure: "0.667 (0.650 - 0.684)", or a dash."""
    if not figure or (middle := figure["mean"]) is None:
        return "-"
    low, high = figure["low"], figure["high"]
    return f"{middle:.3f}" + ("" if low is None or high is None else f" ({low:.3f} - {high:.3f})")


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lays out a table in markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def rounded(value: Any) -> Any:
    """Rounds the floats of plain data to five digits: the last ones depend on where in memory the pictures lay."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def read_or_make(path: Path, make: Callable[[], dict[str, Any]], **key: Any) -> dict[str, Any]:
    """Reads a JSON file, or writes there what ``make`` gives, so that a killed run goes on; it is made again where the
    ``key``, plain data that decides it and is kept with it, is another one."""
    found = read_json(path)
    if not found or not found.items() >= key.items():
        found = make() | key
        write_json(path, found)
    return found


def finish(task: Task, name: str, text: str, figures: Any, spoken: str = "", **summary: Any) -> None:
    """Writes NAME.json with the ``figures``, NAME.md with the ``text`` and the summary, which names both and with
    which an evaluation is finished; says what is ``spoken``."""
    write_json(task.folder / f"{name}.json", figures)
    write_atomic(task.folder / f"{name}.md", text)
    task.summarise(files=[f"{name}.md", f"{name}.json"], **summary)
    if spoken and not task.quiet:
        say(spoken)


def write_strips(path: Path, strips: Iterable[Any], labels: Sequence[str], columns: int = 1) -> None:
    """Draws a sheet of strips of pictures (V, H, W, 3), a label under each; nothing if there are none."""
    if rows := [grid(strip, len(strip)) for strip in strips]:
        write_png(path, grid(pad_to_same_size(rows), columns, labels))


def thumbnails(pictures: Any, most: int) -> np.ndarray:
    """Brings pictures (V, H, W, 3) down to ``most`` pixels, as uint8, so that many can be kept or looked at."""
    size = min(most, *pictures.shape[1:3])
    small = [Image.fromarray(picture).resize((size, size), Image.Resampling.BOX) for picture in to_uint8(pictures)]
    return np.stack([np.asarray(picture) for picture in small])
