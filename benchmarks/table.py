"""Table of benchmark results. It is printed as Markdown and saved as JSON."""

from dataclasses import dataclass, field
from typing import Any

Row = dict[str, str | int | float]


@dataclass
class Table:
    """Table of benchmark results.

    Attributes:
        title: heading of the table.
        rows: rows as dicts. All have the same keys, in the order of the columns.
        notes: texts that are printed below the table.
        details: further data that is only saved to the JSON file.
    """

    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)

    def text(self) -> str:
        """Return the table as Markdown, with text aligned left and numbers aligned right."""
        cells = [list(self.rows[0]), *([_text(value) for value in row.values()] for row in self.rows)]
        widths = [max(3, *(len(row[k]) for row in cells)) for k in range(len(cells[0]))]
        number = [not isinstance(value, str) for value in self.rows[0].values()]
        rule = ["-" * (w - 1) + (":" if n else "-") for w, n in zip(widths, number, strict=True)]
        lines = [
            " | ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, number, strict=True))
            for row in (cells[0], rule, *cells[1:])
        ]
        return "\n".join([f"## {self.title}", "", *(f"| {line} |" for line in lines), "", *self.notes])


def _text(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return str(value)
