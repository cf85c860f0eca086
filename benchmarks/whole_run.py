"""Time a whole run of `quick-toybox`, alone and next to a process that keeps one core busy."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from threedgen.places import folder

from .clock import Case, paired
from .table import Table

ALONE, BESIDE = "alone", "beside a busy core"
BUSY_LOOP = "while True: pass"


def launch(config: str, out: Path, *overrides: str) -> None:
    """Run a config in a new process, with its results in the folder `out`. Raises CalledProcessError if it fails."""
    script = folder("configs").parent / "launch.py"
    args = [sys.executable, script, "--config", config, "--quiet", f"out={out}", *overrides]
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


def table(rounds: int, overrides: list[str]) -> Table:
    """Return a row for each case, with `rounds` runs. `overrides` are changes of the config, as "key=value".

    Raises CalledProcessError if a run fails.
    """

    def run() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            launch("quick-toybox", Path(temporary, "run"), "prompt=a green frog", *overrides)

    def beside() -> None:
        busy = subprocess.Popen([sys.executable, "-c", BUSY_LOOP])
        try:
            run()
        finally:
            busy.kill()
            busy.wait()

    rows = paired({ALONE: Case(run), BESIDE: Case(beside)}, ALONE, rounds)
    spin = os.environ.get("GOMP_SPINCOUNT", "not set")
    return Table("A run of quick-toybox, including the start and end of Python", rows, [f"GOMP_SPINCOUNT: {spin}."])
