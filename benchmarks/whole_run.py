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


def table(rounds: int, overrides: list[str]) -> Table:
    """Return a row for each case. `overrides` change the config. Raises CalledProcessError if a run fails."""
    root = folder("configs").parent

    def run() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary, "run")
            args = ["--config", "quick-toybox", "--quiet", "prompt=a green frog", f"out={out}", *overrides]
            subprocess.run([sys.executable, root / "launch.py", *args], check=True, stdout=subprocess.DEVNULL)

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
