"""Writes the tables and the JSON files of the evaluations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from threedgen.run.folder import write_atomic


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lays out a table in markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def write_json(path: Path, tree: Any) -> None:
    """Writes plain data, whole or not at all. Raises OSError, and ValueError for NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
