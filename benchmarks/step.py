"""A generate step of the default config against the same with torch twins and no empty-space skipping."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from .clock import interleaved, ratio
from .scene import NO_SKIPPING, TWINS, Bench, Stepper, points_of
from .table import Row, Table

DEFAULT, SLOW = "default (numba, skipping)", "torch twins, no skipping"
ABLATIONS = {"numba, no skipping": NO_SKIPPING, "torch twins, skipping": TWINS}
START = 200
"""The first step that is timed: past the warm-up of the occupancy grid."""


def table(bench: Bench, rounds: int, size: int, ablations: bool = False) -> Table:
    """Rows of seconds a step, points a step and how many times slower than the default."""
    variants: dict[str, list[str]] = {DEFAULT: [], SLOW: TWINS + NO_SKIPPING}
    variants |= ABLATIONS if ablations else {}
    systems = {name: bench.system(f"size={size}", *extra) for name, extra in variants.items()}
    interval = systems[DEFAULT].config.occupancy.interval
    many = {name: interval if system.occupancy is not None else 1 for name, system in systems.items()}
    cases = {name: _steps(Stepper(system, frozen=True), many[name]) for name, system in systems.items()}
    seconds = {
        name: [s / many[name] for s in values] for name, values in interleaved(cases, rounds).items()
    }
    rows: list[Row] = [
        {
            "step": name,
            "seconds": median(seconds[name]),
            "points": points_of(system, START),
            "times the default": ratio(seconds[name], seconds[DEFAULT]),
        }
        for name, system in systems.items()
    ]
    notes = [
        f"4 views of {size} x {size}, {bench.about}; median of {rounds} interleaved rounds.",
        f"With an occupancy grid a measurement is {interval} steps, one update of the grid among them.",
    ]
    return Table("A generate step", rows, notes)


def _steps(stepper: Stepper, count: int) -> Callable[[], None]:
    """``count`` steps from an update of the grid to the next."""

    def run() -> None:
        for step in range(START, START + count):
            stepper.step(step)

    return run
