"""The page of a mesh that was textured, report.html: to turn, and beside what it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from threedgen.run.disk import write_atomic

from .page import embedded, page
from .report import SCRIPTS

Row = tuple[str, str, Sequence[tuple[str, str]]]
"""A title, what is to be seen, and pictures: (file beside the page, what it shows)."""


def write_page(
    path: Path, title: str, model: str, rows: Sequence[Row], headline: Sequence[str] = (), notes: Sequence[str] = ()
) -> None:
    """Writes the page of the file ``model``, which lies beside it. Pictures that are not there, or are too large for a
    page, are left out. Raises OSError."""
    shown = []
    for name, hint, pictures in rows:
        found = [(embedded(path.parent / file), label) for file, label in pictures if (path.parent / file).is_file()]
        shown += [(name, hint, [pair for pair in found if pair[0]])] if any(pair[0] for pair in found) else []
    values: dict[str, Any] = {"title": title, "headline": list(headline), "notes": list(notes), "rows": shown}
    write_atomic(path, page("textured.html", SCRIPTS, model=embedded(path.parent / model), model_file=model, **values))
