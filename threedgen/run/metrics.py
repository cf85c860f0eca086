"""Reading and writing of the metrics of a run (metrics.jsonl, metrics.csv) and of its summary (summary.json)."""

import csv
import importlib.metadata
import io
import json
import logging
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from threedgen import __version__
from threedgen.config import config_hash, plugins
from threedgen.config.errors import FileError
from threedgen.config.plain_file import parse_json, read_bytes, read_json
from threedgen.run.disk import Tree, sync, write_atomic, write_json
from threedgen.run.folder import SUMMARY

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "pytorch-lightning", "diffusers", "transformers", "tokenizers", "numba", "numpy", "nerfacc")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def read_metrics(folder: Path) -> list[Tree]:
    """Return the metrics of a run: one dict per line of metrics.jsonl, with the key "step".

    Lines that are no JSON object with an int "step" are left out. Returns [] if the file does not exist. Raises
    FileError if it cannot be read.
    """
    path, rows = Path(folder) / "metrics.jsonl", []
    try:
        text = read_bytes(path).decode("utf-8", "replace") if path.exists() else ""
    except OSError as error:
        raise FileError(f"cannot read {path} ({error.strerror})") from None
    for line in text.split("\n"):
        with suppress(ValueError):
            row = parse_json(line)
            if isinstance(row, dict) and type(row.get("step")) is int:
                rows.append(row)
    return rows


def read_summary(folder: Path) -> Tree:
    """Return the content of summary.json in a run folder; {} if the file is missing or invalid."""
    return read_json(folder / SUMMARY)


class Metrics:
    """Writer of a run's metrics to `folder`: metrics.jsonl with one JSON object per logged step, and metrics.csv.

    `step` is the step at which the run resumes (0: new run). Lines of later steps, which a killed process wrote after
    its last checkpoint, are removed from metrics.jsonl.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path = Path(folder) / "metrics.jsonl"
        self._unwritten, self._failed = b"", False  # what could not be written yet
        if self.path.exists():
            rows = [row for row in read_metrics(self.path.parent) if row["step"] <= step]
            write_atomic(self.path, "".join(map(_line, rows)))

    def log(self, step: int, values: Mapping[str, object]) -> None:
        """Append a line with the metrics of a step to metrics.jsonl.

        `values` maps names to numbers, texts or one-element tensors; NaN and infinity are written as null. If the file
        cannot be written, a warning is logged, and the line is written together with the next one.
        """
        self._unwritten += _line({"step": step} | {key: _number(value) for key, value in values.items()}).encode()
        try:
            self._write()
        except OSError as error:
            if not self._failed:
                logger.warning("cannot write %s (%s). The run continues", self.path, error.strerror)
            self._failed = True

    def _write(self) -> None:
        if self._unwritten:
            with open(self.path, "ab", buffering=0) as file:  # a buffer would not tell what was written
                self._unwritten = self._unwritten[file.write(self._unwritten) :]

    def sync(self) -> None:
        """Force all lines so far onto the disk (fsync). Call this before a checkpoint of the same step is saved.

        Raises OSError if the file cannot be written.
        """
        self._write()
        if self.path.exists():
            sync(self.path)
            sync(self.path.parent)

    def write_csv(self) -> Path:
        """Write metrics.csv with the content of metrics.jsonl, one column per metric; return the path.

        Raises OSError if the file cannot be written.
        """
        path, rows = self.path.with_suffix(".csv"), read_metrics(self.path.parent)
        write_atomic(path, csv_table(rows, () if rows else ("step",)))
        return path


def csv_table(rows: Sequence[Tree], columns: Sequence[str] = ()) -> str:
    """Return CSV text with a header and one row per dict in `rows`. A missing key gives an empty cell.

    `columns` are the keys to write; (): all keys, in order of appearance.
    """
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _line(values: Tree) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def _number(value: Any) -> float | str | None:
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def environment() -> dict[str, object]:
    """Return properties of software and machine that can change the last bits of results, for summary.json.

    The keys are "versions" ({package: version}), "platform" (operating system), "cpu" (its name), "cores" (their
    number) and "threads" (number of torch's threads, and environment variables such as OMP_NUM_THREADS).
    """
    versions = {"threedgen": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    threads: dict[str, object] = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    if "torch" in sys.modules:
        threads["torch"] = sys.modules["torch"].get_num_threads()
    machine = {"platform": platform.platform(), "cpu": _cpu(), "cores": os.cpu_count()}
    return {"versions": versions, **machine, "threads": threads}


def _cpu() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def peak_memory() -> float | None:
    """Return the maximum resident (CPU) memory that this process has used so far, in MiB; None on Windows."""
    # on Linux getrusage includes the memory of the parent process at the start, VmHWM does not
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def reset_peak_memory() -> None:
    """Reset the maximum that `peak_memory` returns, between two runs in one process. Works on Linux only."""
    with suppress(OSError):  # not Linux, or not permitted
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def write_summary(folder: Path, config: BaseModel, seconds: float, **figures: object) -> Path:
    """Write summary.json to a run folder; return its path.

    The file has the task, prompt, seed and hash of the config, the duration `seconds` of the run, its end time, the
    peak memory, and the result of `environment`. `figures` are further entries by name: the task's results, such as
    scores.
    """
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
        **({"plugins": found} if (found := plugins.identify()) else {}),
    }
    path = Path(folder) / SUMMARY
    write_json(path, summary)
    return path
