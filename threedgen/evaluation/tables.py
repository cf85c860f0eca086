"""Writes the tables, the figures, the files and the last words of the evaluations."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from threedgen.evaluation.metrics.figures import Share
from threedgen.geometry.images import to_uint8
from threedgen.run.folder import write_atomic
from threedgen.run.metrics import write_summary
from threedgen.run.text import say


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


def write_json(path: Path, tree: Any) -> None:
    """Writes plain data, whole or not at all. Raises OSError, and ValueError for NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_report(folder: Path, text: str, figures: dict[str, Any]) -> None:
    """Writes report.md and report.json."""
    write_atomic(folder / "report.md", text)
    write_json(folder / "report.json", figures)


def finish(config: Any, begun: float, place: str, text: str = "", **figures: Any) -> int:
    """Writes the summary of a run that began at ``begun``, says ``text`` if there is any, and where its result is;
    returns the exit code."""
    folder = Path(str(config.out))
    write_summary(folder, config, time.monotonic() - begun, status="finished", **figures)
    for line in filter(None, (text, str(folder / place))):
        say(line)
    return 0


def thumbnails(pictures: Any, most: int) -> np.ndarray:
    """Brings pictures (V, H, W, 3) down to ``most`` pixels, as uint8, so that many can be kept or looked at."""
    size = min(most, *pictures.shape[1:3])
    small = [Image.fromarray(picture).resize((size, size), Image.Resampling.BOX) for picture in to_uint8(pictures)]
    return np.stack([np.asarray(picture) for picture in small])
