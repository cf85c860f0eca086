"""A whole run of ``quick-toybox``, from the command to its asset: alone, and beside a job that keeps one core busy."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from threedgen import folder

from .clock import Case, paired
from .table import Table

ALONE, BESIDE = "alone", "beside a busy core"
FOREVER = "while True: pass"


def table(rounds: int, overrides: list[str]) -> Table:
    """``overrides``: of the config. Raises CalledProcessError for a run that fails."""
    root = folder("configs").parent

    def run() -> None:
        with tempfile.TemporaryDirectory() as place:
            out = Path(place, "run")
            words = ["--config", "quick-toybox", "--quiet", "prompt=a green frog", f"out={out}", *overrides]
            subprocess.run([sys.executable, root / "launch.py", *words], check=True, stdout=subprocess.DEVNULL)

    def beside() -> None:
        busy = subprocess.Popen([sys.executable, "-c", FOREVER])
        try:
            run()
        finally:
            busy.kill()
            busy.wait()

    rows = paired({ALONE: Case(run), BESIDE: Case(beside)}, ALONE, rounds)
    spin = os.environ.get("GOMP_SPINCOUNT", "not set")
    return Table("A run of quick-toybox, start and end of Python included", rows, [f"GOMP_SPINCOUNT: {spin}."])
