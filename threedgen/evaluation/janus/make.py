"""Makes the object of one job in a folder of its own, or goes on with it, and leaves a record of how that ended.

    RUN/runs/KEY/job.json    JSON: state, reason, memory_mib, and the seconds of all attempts together

A job whose record says finished or failed is over: so a benchmark that was killed goes on with the others.
"""

from __future__ import annotations

import io
import json
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from threedgen.config import ConfigError, registry
from threedgen.run import folder as runs
from threedgen.run.metrics import peak_memory, read_json, read_summary
from threedgen.run.workers import STOPPED, Stopped

from .jobs import Job

BEGUN, REFUSED, FINISHED, FAILED = "begun", "refused", "finished", "failed"
OVER = (FINISHED, FAILED)
"""Refused: the method cannot run, as things are. Failed: it is no use."""


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a job's folder; empty if there is none that can be read."""
    return read_json(folder / "job.json")


def write_record(folder: Path, state: str, **figures: Any) -> None:
    """Says how a job stands; what the old record says of anything else stays."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(read_record(folder) | {"state": state, **figures}, ensure_ascii=False)
    runs.write_atomic(folder / "job.json", text + "\n")


def make(job: Job, root: Path, threads: int | None) -> str:
    """Runs the task of a job in ``root``/KEY; returns the state. Raises Stopped if it was, and what its task raises
    (which may not come again) other than ConfigError."""
    folder = root / job.key
    config = job.config.model_copy(update={"out": str(folder), "threads": threads})
    begun, before = time.monotonic(), read_record(folder).get("seconds", 0.0)
    state, figures = BEGUN, dict[str, Any]()
    forget_peak()
    try:
        config, resume = runs.begin(config, job.method)
        with redirect_stdout(io.StringIO()):  # a quiet task still says where its results are
            code = registry.implementation("task", config.task)(config, resume=resume, quiet=True) or 0
        if code in STOPPED:
            raise Stopped(code)
        summary = read_summary(folder)
        if code:
            state, figures = FAILED, {"reason": summary.get("reason", f"its task ended with code {code}")}
        else:
            state, figures = FINISHED, {"memory_mib": summary.get("peak_memory_mib", peak_memory())}
    except ConfigError as error:
        begun_well = any((folder / "checkpoints").glob("*.ckpt"))
        state, figures = FAILED if begun_well else REFUSED, {"reason": str(error)}
    finally:
        write_record(folder, state, seconds=round(before + time.monotonic() - begun, 3), **figures)
    return state


def forget_peak() -> None:
    """From now on the most memory of this process counts anew, so that a run does not answer for the one before."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or not allowed: the peak is then the worker's
        pass
