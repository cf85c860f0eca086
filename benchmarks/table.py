"""A table of results, for the terminal, for Markdown and for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Row = dict[str, str | int | float]


@dataclass
class Table:
    """Rows with the same keys, in the order of the columns; ``notes`` say how it was measured."""

    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[list[str]]:
        """Header and rows as text; every column of numbers with as many digits as are worth reading."""
        header = list(self.rows[0])
        return [header, *([_text(row[name]) for name in header] for row in self.rows)]

    def text(self) -> str:
        """For the terminal: words to the left, numbers to the right."""
        cells = self.cells()
        widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
        number = [not isinstance(value, str) for value in self.rows[0].values()]
        lines = [
            "  ".join(
                c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, number, strict=True)
            ).rstrip()
            for row in cells
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([self.title, rule, lines[0], *lines[1:], *self.notes])

    def markdown(self) -> str:
        cells = self.cells()
        number = [not isinstance(value, str) for value in self.rows[0].values()]
        rule = ["---:" if n else "---" for n in number]
        lines = [f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:])]
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return f"## {self.title}\n\n" + "\n".join(lines) + f"\n{notes}"

    def json(self) -> dict[str, Any]:
        return asdict(self)


def _text(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
    return str(value)
