"""A generate step of the default config against the same with torch twins and no empty-space skipping."""

from __future__ import annotations

from pathlib import Path

from .clock import Case, paired
from .scene import Bench, Stepper
from .table import Table

TWINS = ["field.encoding.backend=torch", "march.backend=torch"]
NO_SKIPPING = ["march.sampler=stratified", "occupancy=null"]
BASELINE = "torch twins, no skipping"
VARIANTS = {
    BASELINE: TWINS + NO_SKIPPING,
    "torch twins, skipping": TWINS,
    "numba, no skipping": NO_SKIPPING,
    "numba, skipping (default)": [],
}
START = 200
"""The first step that is timed: past the warm-up of the occupancy grid."""


def table(rounds: int, size: int, overrides: list[str], run: Path | None) -> Table:
    """A row for each variant; ``run``: a folder to take the field from. Raises ConfigError."""
    bench = Bench(overrides, run)
    cases, interval = {}, 1
    for name, extra in VARIANTS.items():
        system = bench.system(f"size={size}", *extra)
        interval = 1 if system.occupancy is None else system.config.occupancy.interval
        cases[name] = Case(Stepper(system).steps(START, interval), interval)
    notes = [
        f"4 views of {size} x {size}, {bench.about}; {rounds} interleaved rounds. With an occupancy grid a measurement "
        f"is {interval} steps, one update of the grid among them."
    ]
    return Table("A generate step", paired(cases, BASELINE, rounds), notes)
