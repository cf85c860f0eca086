"""Acceptance table of the export: metrics of how well an asset matches its field, with limits.

    python -m benchmarks export --seeds 5                        synthetic fields of two shapes with known ground truth
    python -m benchmarks export --run outputs/mvdream-toybox/*   runs

Each metric compares an asset with its field, with the field's dense mesh or with the ground truth. The metric
"findings" is the number of problems that glb_check.py finds in the files.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from threedgen.config.errors import ConfigError

from .export_asset import Job, measure
from .export_fields import SHAPES
from .table import Row, Table


class Metric(NamedTuple):
    """Metric of the acceptance table, with its limits.

    Attributes:
        check: title of the row.
        key: key of the metric in the results of `export_asset.measure`.
        low, high: minimum and maximum of the metric; None: no limit. A metric without both is only reported. The worst
            value is the largest if there is a maximum, else the smallest.
    """

    check: str
    key: str
    low: float | None = None
    high: float | None = None

    def row(self, values: list[float]) -> Row:
        """Return the table row of a metric's values: limit, worst value, median, number of values within the limit."""
        worst = min(values) if self.high is None else max(values)
        row: Row = {"check": self.check, "bar": "(none)", "worst": f"{worst:.4g}", "median": f"{median(values):.4g}"}
        if self.low is None and self.high is None:
            return row | {"held": "-", "verdict": "reported"}
        held = sum((self.low is None or v >= self.low) and (self.high is None or v <= self.high) for v in values)
        row["bar"] = f">= {self.low:g}" if self.high is None else f"<= {self.high:g}" if self.high else "0"
        return row | {"held": f"{held} of {len(values)}", "verdict": "pass" if held == len(values) else "FAIL"}


METRICS = [
    Metric("an asset was exported", "made", low=1),
    Metric("time of the dense mesh, fraction of the total", "time"),
    Metric("triangles, fraction of the budget", "budget", low=0.95),
    Metric("silhouette, IoU with the dense mesh", "silhouette", low=0.995),
    Metric("silhouette of 3000 triangles, IoU with the dense mesh", "silhouette few", low=0.985),
    Metric("mean distance to the dense mesh, % of diagonal", "distance", high=0.2),
    Metric("volume, error relative to the dense mesh, %", "volume", high=1),
    Metric("IoU with the ground truth", "truth", low=0.87),
    Metric("IoU with the ground truth, density x 3", "times 3", low=0.80),
    Metric("IoU with the ground truth, density x 10", "times 10", low=0.70),
    Metric("UV coverage", "coverage", low=0.42),
    Metric("charts", "charts", high=250),
    Metric("texel density, 5th percentile / median", "density low", low=0.8),
    Metric("texel density, 95th percentile / median", "density high", high=1.25),
    Metric("findings of the checker", "findings", high=0),
    Metric("collision hull volume, fraction of the convex hull", "hull share", low=0.9),
    Metric("silhouette, IoU with the field", "outline"),
    Metric("PSNR inside with the field, baked texture, dB", "inside baked"),
    Metric("PSNR inside with the field, refined texture, dB", "inside refined"),
    Metric("PSNR gain of the refinement inside, dB", "gain", low=1),
]


def jobs(seeds: int, grid: int, folders: Sequence[Path] | None = None) -> list[Job]:
    """Return one job per run folder or, without folders, one per synthetic shape and seed.

    `seeds` is the number of seeds per shape, and `grid` the number of grid points per edge for the surface extraction.
    """
    if folders:
        return [Job(folder.name, grid, run=folder.resolve()) for folder in folders]
    return [Job(f"{shape}_{seed}", grid, shape, seed) for shape in SHAPES for seed in range(1, seeds + 1)]


def table(seeds: int, grid: int, runs: Sequence[Path] | None) -> Table:
    """Return the acceptance table of the runs or, without runs, of `seeds` synthetic fields per shape.

    `grid` is the number of grid points per edge for the surface extraction.
    """
    return assess(jobs(seeds, grid, runs))


def assess(jobs: Sequence[Job], measure: Callable[[Job], dict[str, Any]] = measure) -> Table:
    """Measure the jobs, evaluate every metric and return the table. A job that raises a ConfigError becomes a note."""
    measured: list[dict[str, Any]] = []
    for job in jobs:
        try:
            measured.append({"name": job.name, "made": 1} | measure(job))
        except ConfigError as error:
            measured.append({"name": job.name, "made": 0, "why": str(error)})
        print(f"{len(measured)} of {len(jobs)}: {job.name}", flush=True)
    values = {
        metric: [float(figures[metric.key]) for figures in measured if metric.key in figures] for metric in METRICS
    }
    rows = [metric.row(figures) for metric, figures in values.items() if figures]
    asset = jobs[0].asset
    notes = [
        f"{len(jobs)} assets ({', '.join(job.name for job in jobs)}): {jobs[0].grid}^3 grid, {asset.sizes.budget} "
        f"triangles, {asset.sizes.texture} texels, texture refined on {asset.refine} renders and compared on others.",
        *(f"{figures['name']}: {figures['why']}" for figures in measured if "why" in figures),
    ]
    return Table("Export of runs" if jobs[0].run else "Export of synthetic fields", rows, notes, measured)
