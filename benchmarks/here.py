"""Measure the times that the documentation states on this machine: a full run, a quick run, a step, an export."""

import csv
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from threedgen.run.metrics import environment

from .table import Row, Table
from .whole_run import launch

STORED = Path(__file__).with_suffix(".json")  # rows of other machines, with [minimum, maximum] of each time
TIMES = ("demo, s", "quick, s", "step, ms", "export, s")
BUSY = 0.5  # load average from which the machine does not count as idle


def table(overrides: list[str]) -> Table:
    """Return a row with the times of this machine, and the stored rows of other machines.

    "demo" and "quick" are whole runs of `mvdream-toybox` and `quick-toybox`, with `overrides` of their configs, and
    "export" is a run of the task "export". These times include the start of Python. "step" is the median of the demo's
    distillation steps. Raises CalledProcessError if a run fails.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    with tempfile.TemporaryDirectory() as temporary:
        demo, quick, exported = (Path(temporary, name) for name in ("demo", "quick", "export"))
        seconds = {
            "demo, s": timed("mvdream-toybox", demo, "prompt=a red penguin", *overrides),
            "quick, s": timed("quick-toybox", quick, "prompt=a red penguin", *overrides),
            "step, ms": 1000 * step_seconds(demo),
            "export, s": timed("export", exported, f"run={demo}"),
        }
    here: dict[str, Any] = {"processor": processor(), "cores": os.cpu_count(), "load": f"{load:.1f}"}
    here |= {name: [round(value, 1)] * 2 for name, value in seconds.items()}
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    notes = [
        f"The first row is this machine. Its row for {STORED.name}: {json.dumps(here)}",
        f"Load when the benchmark started: {load:.1f}." + " Repeat it on an idle machine." * (load > BUSY),
    ]
    return Table("Times of the documentation", [shown(row) for row in (here, *stored)], notes)


def timed(config: str, out: Path, *overrides: str) -> float:
    """Run a config and return the seconds from the start of Python to its end."""
    start = time.perf_counter()
    launch(config, out, *overrides)
    return time.perf_counter() - start


def step_seconds(run: Path) -> float:
    """Return the median duration of the distillation steps of a run, from its metrics; NaN without such a step."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        steps = [float(row["step_seconds"]) for row in csv.DictReader(file) if row.get("distillation")]
    return median(steps) if steps else float("nan")


def processor() -> str:
    """Return the name of the processor and its bf16 instructions, which determine the speed of the embedded models."""
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    bf16 = "AMX" if found.get("amx_bf16") else "AVX-512 with bf16" if found.get("avx512_bf16") else "no bf16"
    return f"{environment()['cpu']}, {bf16}"


def shown(row: dict[str, Any]) -> Row:
    """Format a stored row: a time as "50 - 53" (minimum - maximum), "50" if both are equal, "-" if not measured."""

    def span(limits: list[float] | None) -> str:
        return "-" if limits is None else " - ".join(f"{value:g}" for value in dict.fromkeys(limits))

    return {key: row[key] for key in ("processor", "cores", "load")} | {name: span(row.get(name)) for name in TIMES}
