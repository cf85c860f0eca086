"""Time the hash grid, forward and backward to its feature table: numba kernels against PyTorch."""

from collections.abc import Callable
from typing import Any

import torch

from threedgen.config import registry
from threedgen.representations.options import HashGridConfig

from .clock import Case, paired
from .table import Row, Table

SIZES: list[tuple[str, dict[str, Any], int]] = [
    ("toybox", {"n_levels": 10, "log2_hashmap_size": 15, "per_level_scale": 1.36}, 2**14),
    ("toybox", {"n_levels": 10, "log2_hashmap_size": 15, "per_level_scale": 1.36}, 2**17),
    ("16 levels", {"n_levels": 16, "log2_hashmap_size": 15}, 2**15),
    ("16 levels", {"n_levels": 16, "log2_hashmap_size": 17}, 2**15),
    ("MVDream", {"n_levels": 16, "log2_hashmap_size": 19}, 2**15),
]
"""Name in the table, options of the hash grid, number of query points."""


def table(rounds: int) -> Table:
    """Return a row for PyTorch and a row for numba, for each of SIZES, timed in `rounds` rounds."""
    rows: list[Row] = []
    for name, options, points in SIZES:
        grid: Row = {"grid": name, "log2 table": options["log2_hashmap_size"], "points": points}
        cases = {backend: Case(_pass(options, points, backend)) for backend in ("torch", "numba")}
        rows += [grid | row for row in paired(cases, "torch", rounds)]
    note = f"{rounds} interleaved rounds; random points in the unit cube, random gradients."
    return Table("Hash grid, forward + backward", rows, [note])


def _pass(options: dict[str, Any], points: int, backend: str) -> Callable[[], None]:
    rng = torch.Generator().manual_seed(0)
    grid = registry.build("encoding", HashGridConfig(**options, backend=backend), generator=rng)
    x = torch.rand(points, 3, generator=rng)
    grad = torch.randn(points, grid.output_dim, generator=rng)

    def run() -> None:
        grid.table.grad = None
        grid(x).backward(grad)

    return run
