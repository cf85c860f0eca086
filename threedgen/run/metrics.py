"""What a run writes down about itself: metrics while it goes on, a summary at its end."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from threedgen import __version__
from threedgen.config import ConfigError, config_hash
from threedgen.config.plain_file import parse_json, read_bytes, read_json
from threedgen.run.disk import write_atomic, write_json
from threedgen.run.folder import SUMMARY

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "pytorch-lightning", "diffusers", "transformers", "tokenizers", "numba", "numpy", "nerfacc")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Reads the whole lines of metrics.jsonl, as dicts with a `step`; one that is cut off, or not ours, is left out.

    Raises ConfigError for a file that cannot be read at all.
    """
    path, found = Path(folder) / "metrics.jsonl", []
    try:
        text = read_bytes(path).decode("utf-8", "replace") if path.exists() else ""
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None
    for text_line in text.split("\n"):
        with suppress(ValueError):
            line = parse_json(text_line)
            if isinstance(line, dict) and type(line.get("step")) is int:
                found.append(line)
    return found


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads summary.json of a run; empty if there is none that can be read."""
    return read_json(folder / SUMMARY)


class Metrics:
    """metrics.jsonl, one JSON object a line, and metrics.csv made from it.

    A line's `step` is the number of optimisation steps done. Opened at a resumed step, lines of later steps,
    which a killed run wrote after its last checkpoint, are dropped.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self._failed = False
        if self.path.exists():
            kept = [line for line in read_metrics(self.path.parent) if line["step"] <= step]
            write_atomic(self.path, "".join(_line(line) for line in kept))

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Appends a line of numbers (tensors of one element included); a full disk is a warning, once."""
        line = _line({"step": step} | {key: _number(value) for key, value in values.items()})
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            if not self._failed:
                logger.warning("%s cannot be written (%s); going on", self.path, error.strerror)
            self._failed = True

    def write_csv(self) -> Path:
        """Writes metrics.csv beside it: a column for each key, in the order of appearance. Raises OSError."""
        path, lines = self.path.with_suffix(".csv"), read_metrics(self.path.parent)
        write_atomic(path, csv_table(lines, () if lines else ("step",)))
        return path


def csv_table(rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> str:
    """Lays out a table in CSV: these columns, or one for each key in the order of appearance."""
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def _number(value: Any) -> Any:
    """Makes a JSON value: numbers as they are, one-element tensors as floats, NaN and infinities as None."""
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def environment() -> dict[str, Any]:
    """Collects versions, machine and thread counts: what decides the last bits of a result. Imports nothing heavy."""
    versions = {"threedgen": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    threads: dict[str, Any] = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    if "torch" in sys.modules:
        threads["torch"] = sys.modules["torch"].get_num_threads()
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
    }


def _cpu() -> str:
    """Finds the name of the processor, from /proc where there is one."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def peak_memory() -> float | None:
    """Measures the most memory this process has held, in MiB; None where the system does not tell (Windows)."""
    # Linux counts the process that started this one into getrusage's figure, but not here
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def forget_peak() -> None:
    """Counts the most memory of this process anew, so that a run does not answer for the one before."""
    with suppress(OSError):  # not Linux, or not allowed: the peak is then that of the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def write_summary(folder: Path, config: BaseModel, seconds: float, **figures: Any) -> Path:
    """Writes summary.json: end (UTC), seconds it took, peak memory, seed, config hash, versions, further figures."""
    summary = {
        "task": getattr(config, "task", None),
        "prompt": getattr(config, "prompt", None),
        "seed": getattr(config, "seed", None),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "peak_memory_mib": peak_memory(),
        "config_hash": config_hash(config),
        **figures,
        "environment": environment(),
    }
    path = Path(folder) / SUMMARY
    write_json(path, summary)
    return path
