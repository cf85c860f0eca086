"""Compare a generate step of the default config with PyTorch kernels and with no skipping of empty space."""

from pathlib import Path

from .clock import paired
from .scene import Bench, step_case
from .table import Table

TWINS = ["field.encoding.backend=torch", "march.backend=torch"]
NO_SKIPPING = ["occupancy=null"]
BASELINE, DEFAULT = "torch twins, no skipping", "numba, skipping (default)"
VARIANTS = {
    BASELINE: TWINS + NO_SKIPPING,
    "torch twins, skipping": TWINS,
    "numba, no skipping": NO_SKIPPING,
    DEFAULT: [],
}
START = 200  # number of the first timed training step


def table(rounds: int, size: int, overrides: list[str], runs: list[Path] | None) -> Table:
    """Return a row for each variant, rendered at `size` pixels. `overrides` are changes of the config, as "key=value".

    The field comes from the run folder `runs[0]`; without runs, it is fitted to images. Raises ConfigError if an
    override is invalid or the run has no checkpoint.
    """
    bench = Bench(overrides, runs[0] if runs else None)
    cases = {name: step_case(bench.system(f"size={size}", *extra), START) for name, extra in VARIANTS.items()}
    notes = [
        f"4 views of {size} x {size}, {bench.about}; {rounds} interleaved rounds. With an occupancy grid a measurement "
        f"is {cases[DEFAULT].count} steps, including one update of the grid."
    ]
    return Table("A generate step", paired(cases, BASELINE, rounds), notes)
