"""The acceptance table of the export: is the asset what the field was?

    python -m benchmarks export --seeds 5                        fields whose truth is known, of two shapes
    python -m benchmarks export --run outputs/mvdream-toybox/*   runs

Each figure compares an asset with its field, with the dense mesh of that, or with the truth. Whether the files are
sound is the checker's business (threedgen/export/files/check.py): here its findings are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from threedgen.config.errors import ConfigError

from .export_asset import Job, measure
from .export_fields import SHAPES
from .table import Row, Table


class Rule(NamedTuple):
    """A line of the table: the figure's key and its bar; without one it is told, and more of it is better."""

    check: str
    key: str
    low: float | None = None
    high: float | None = None

    def row(self, values: list[float]) -> Row:
        """The line, with the worst value and the median."""
        worst = min(values) if self.high is None else max(values)
        row: Row = {"check": self.check, "bar": "(told)", "worst": f"{worst:.4g}", "median": f"{median(values):.4g}"}
        if self.low is None and self.high is None:
            return row | {"held": "-", "verdict": "told"}
        held = sum((self.low is None or v >= self.low) and (self.high is None or v <= self.high) for v in values)
        row["bar"] = f">= {self.low:g}" if self.high is None else f"<= {self.high:g}" if self.high else "0"
        return row | {"held": f"{held} of {len(values)}", "verdict": "pass" if held == len(values) else "FAIL"}


RULES = [
    Rule("an asset was made", "made", low=1),
    Rule("time of the dense surface, share of the whole", "time"),
    Rule("triangles, share of the budget", "budget", low=0.95),
    Rule("outline, IoU with the dense mesh", "silhouette", low=0.995),
    Rule("the same of a mesh of 3000 triangles", "silhouette few", low=0.985),
    Rule("mean distance to the dense mesh, % of diagonal", "distance", high=0.2),
    Rule("volume, off that of the dense mesh, %", "volume", high=1),
    Rule("IoU with the truth", "truth", low=0.87),
    Rule("IoU with the truth, density x 3", "times 3", low=0.80),
    Rule("IoU with the truth, density x 10", "times 10", low=0.70),
    Rule("UV coverage", "coverage", low=0.42),
    Rule("charts", "charts", high=250),
    Rule("texel density, 5 %, of the median", "density low", low=0.8),
    Rule("texel density, 95 %, of the median", "density high", high=1.25),
    Rule("the checker's findings", "findings", high=0),
    Rule("collision hull, share of the full one", "hull share", low=0.9),
    Rule("outline, IoU with the field", "outline"),
    Rule("pictures of the field, dB inside, as baked", "inside baked"),
    Rule("pictures of the field, dB inside, refined", "inside refined"),
    Rule("gain of refining inside, dB", "gain", low=1),
]


def jobs(seeds: int, grid: int, folders: Sequence[Path] | None = None) -> list[Job]:
    """So many seeds of each shape; or the runs in these folders."""
    if folders:
        return [Job(folder.name, grid, run=folder.resolve()) for folder in folders]
    return [Job(f"{shape}_{seed}", grid, shape, seed) for shape in SHAPES for seed in range(1, seeds + 1)]


def table(seeds: int, grid: int, runs: Sequence[Path] | None) -> Table:
    """Every rule over so many fields of each shape, or over these runs."""
    return assess(jobs(seeds, grid, runs))


def assess(jobs: Sequence[Job], measure: Callable[[Job], dict[str, Any]] = measure) -> Table:
    """Every rule over the jobs; a field that makes no asset is a note."""
    measured: list[dict[str, Any]] = []
    for job in jobs:
        try:
            measured.append({"name": job.name, "made": 1} | measure(job))
        except ConfigError as error:
            measured.append({"name": job.name, "made": 0, "why": str(error)})
        print(f"{len(measured)} of {len(jobs)}: {job.name}", flush=True)
    values = {rule: [float(found[rule.key]) for found in measured if rule.key in found] for rule in RULES}
    rows = [rule.row(figures) for rule, figures in values.items() if figures]
    asset = jobs[0].asset
    notes = [
        f"{len(jobs)} assets ({', '.join(job.name for job in jobs)}): {jobs[0].grid}^3 grid, {asset.triangles} "
        f"triangles, {asset.texels} texels, fitted to {asset.refine} pictures, compared with others.",
        *(f"{found['name']}: {found['why']}" for found in measured if "why" in found),
    ]
    return Table("Export, of runs" if jobs[0].run else "Export, of synthetic fields", rows, notes, measured)
