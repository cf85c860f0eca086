"""Page of a textured mesh, report.html: 3D view and images for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from threedgen.run.disk import Tree, write_atomic

from .page import embedded, page
from .report import SCRIPTS

Row = tuple[str, str, Sequence[tuple[str, str]]]
"""Title, description, and images as (file beside the page, caption)."""


def write_page(
    path: Path, title: str, model: str, rows: Sequence[Row], headline: Sequence[str] = (), notes: Sequence[str] = ()
) -> None:
    """Write the page of the file `model` in its folder; skip missing or too large images. Raises OSError."""
    sections = []
    for name, hint, images in rows:
        found = [(embedded(path.parent / file), label) for file, label in images if (path.parent / file).is_file()]
        sections += [(name, hint, [pair for pair in found if pair[0]])] if any(pair[0] for pair in found) else []
    values: Tree = {"title": title, "headline": list(headline), "notes": list(notes), "rows": sections}
    write_atomic(path, page("textured.html", SCRIPTS, model=embedded(path.parent / model), model_file=model, **values))
