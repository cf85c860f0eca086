"""Write the page of a textured mesh, with a 3D view and images for comparison."""

from collections.abc import Sequence
from pathlib import Path

from threedgen.run.disk import Tree, write_atomic

from .page import embedded, page
from .report import SCRIPTS

Row = tuple[str, str, Sequence[tuple[str, str]]]
"""Row of images on the page: title, description, and a (file name, caption) per image. Files lie beside the page."""


def write_page(
    path: Path, title: str, model: str, rows: Sequence[Row], headline: Sequence[str] = (), notes: Sequence[str] = ()
) -> None:
    """Write the page of the GLB file `model`, which lies in the page's folder. Raises OSError.

    Missing and too large images are left out. `headline`: texts for the line under the title; `notes`: remarks for the
    user, one sentence each.
    """
    sections = []
    for name, hint, images in rows:
        found = [(embedded(path.parent / file), label) for file, label in images if (path.parent / file).is_file()]
        sections += [(name, hint, [pair for pair in found if pair[0]])] if any(pair[0] for pair in found) else []
    values: Tree = {"title": title, "headline": list(headline), "notes": list(notes), "rows": sections}
    write_atomic(path, page("textured.html", SCRIPTS, model=embedded(path.parent / model), model_file=model, **values))
