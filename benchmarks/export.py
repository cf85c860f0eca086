"""The acceptance table of the export: is the asset what the field was?

    python -m benchmarks export --seeds 5                    fields whose truth is known, of two shapes
    python -m benchmarks export runs=outputs/mvdream-toybox  the runs in a folder; or runs=[RUN, RUN]

Each asset is made in a process of its own, so that its peak memory is its own, and once more in another where equal
bytes are to be shown.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from threedgen.config.errors import ConfigError
from threedgen.export.options import CHECKPOINTS
from threedgen.run import folder as runs

from .creature import SHAPES
from .table import Table

ROOT = Path(__file__).parents[1]
FAILED = 2
"""Exit code of a process whose field made no asset."""


@dataclass(frozen=True)
class Job:
    """One asset to be measured: of a run, or of a synthetic field of some `shape` and `seed`.

    grid: points along an edge of the world; coarse: of the grids for other scales and worlds; pictures: to which the
    texture is fitted; views, pixels: of the pictures that are compared; height in metres; out: folder of the GLBs and
    of each asset's figures; bytes_only: no figures but time, memory and the hashes of the files.
    """

    name: str
    run: str | None = None
    shape: str = "animal"
    seed: int = 0
    grid: int = 256
    coarse: int = 128
    triangles: int = 15_000
    texture: int = 1024
    levels: tuple[int, ...] = (5000, 1500)
    pictures: int = 16
    views: int = 24
    pixels: int = 256
    height: float = 0.5
    out: str | None = None
    bytes_only: bool = False

    @property
    def kind(self) -> str:
        return "run" if self.run else self.shape


Measure = Callable[[Job], dict[str, Any]]


class Rule(NamedTuple):
    """A line of the table: the figure's key and its bar; without bounds it is told, and more of it is better."""

    check: str
    key: str
    low: float | None = None
    high: float | None = None

    @property
    def bar(self) -> str:
        if self.low is None and self.high is None:
            return "(told)"
        if self.low is None:
            return "0" if self.high == 0 else f"<= {self.high:g}"
        return f">= {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"

    def excess(self, value: float) -> float:
        """How far beyond the bar, negative within; for what is only told, how bad."""
        if self.low is None and self.high is None:
            return -value
        above = -math.inf if self.high is None else value - self.high
        return max(above, -math.inf if self.low is None else self.low - value)

    def row(self, values: list[float]) -> dict[str, Any]:
        """The line, with the worst value and the median."""
        shown: dict[str, Any] = {"check": self.check, "bar": self.bar}
        if not values:
            return shown | {"worst": "-", "median": "-", "held": "-", "verdict": "not measured"}
        held = sum(self.excess(value) <= 0 for value in values)
        verdict = "told" if self.bar == "(told)" else "pass" if held == len(values) else "FAIL"
        return shown | {
            "worst": f"{max(values, key=self.excess):.4g}", "median": f"{statistics.median(values):.4g}",
            "held": "-" if verdict == "told" else f"{held} of {len(values)}", "verdict": verdict,
        }  # fmt: skip


RULES = [
    Rule("an asset was made", "made", low=1),
    Rule("seconds without the field's queries", "seconds", high=20),
    Rule("memory beyond what was held, MiB", "memory", high=1024),
    Rule("triangles, share of the budget", "budget", 0.95, 1),
    Rule("edges without two faces, welded", "edges", high=0),
    Rule("degenerate triangles", "degenerate", high=0),
    Rule("bodies", "bodies", high=2),
    Rule("outline, IoU with the dense mesh", "silhouette", low=0.995),
    Rule("the same of a mesh of 3000 triangles", "silhouette few", low=0.985),
    Rule("mean distance to the dense mesh, % of diagonal", "distance", high=0.2),
    Rule("volume, off that of the dense mesh, %", "volume", high=1),
    Rule("IoU with the truth", "truth", low=0.87),
    Rule("the same by the mean-density rule", "mean rule"),
    Rule("tail kept", "tail"),
    Rule("IoU with the truth, density x 3", "times 3", low=0.80),
    Rule("IoU with the truth, density x 10", "times 10", low=0.70),
    Rule("IoU after padding the world by an eighth", "padded", low=0.99),
    Rule("IoU after cropping the world", "cropped", low=0.99),
    Rule("UV overlap, share of covered texels", "overlap", high=1e-4),
    Rule("UV coverage", "coverage", low=0.42),
    Rule("charts", "charts", high=250),
    Rule("texel density, 5 %, of the median", "density low", low=0.8),
    Rule("texel density, 95 %, of the median", "density high", high=1.25),
    Rule("texels between two charts", "gap", low=4),
    Rule("background unlike the nearest chart, share", "background", high=1e-3),
    Rule("normal map, gain in dB when lit", "normal map", low=2),
    Rule("normal map, mean blue", "blue", low=0.8),
    Rule("the checker's findings", "findings", high=0),
    Rule("Khronos validator, errors and warnings", "khronos", high=0),
    Rule("files that differ in a second process", "repeat", high=0),
    Rule("size of the GLB, MB", "megabytes", high=3),
    Rule("origin off the bottom's middle, m", "pivot", high=1e-4),
    Rule("height off what was asked, m", "height", high=1e-4),
    Rule("collision hull, triangles", "hull", high=128),
    Rule("collision hull, share of the full one", "hull share", low=0.9),
    Rule("each level over the one before", "levels", high=0.5),
    Rule("open edges of the levels, welded", "level edges", high=0),
    Rule("maps of the levels that are not the first one's", "level maps", high=0),
    Rule("outline, IoU with the field", "outline"),
    Rule("pictures of the field, dB, as baked", "whole baked"),
    Rule("pictures of the field, dB, refined", "whole refined"),
    Rule("the same inside, dB, as baked", "inside baked"),
    Rule("the same inside, dB, refined", "inside refined"),
    Rule("gain of refining inside, dB", "gain", low=1),
]


def synthetic(seeds: int, **more: Any) -> list[Job]:
    """So many seeds of each shape; more: fields of the jobs."""
    return [Job(f"{s}_{k}", shape=s, seed=k, **more) for s in SHAPES for k in range(1, seeds + 1)]


def of_runs(text: str, **more: Any) -> list[Job]:
    """The runs that `text` names: a run's folder, one that holds such, or a YAML list of them. Raises ConfigError."""
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:
        read = text
    found: list[Path] = []
    for said in map(str, read if isinstance(read, list) else [text]):
        place = runs.user_path(said, "runs")
        here = [folder for folder in _folders(place) if _finished(folder)]
        if not here:
            raise ConfigError(f"runs: no run of the task generate with a checkpoint is at {place}")
        found += here
    return [Job(f"{k:02d}", run=str(folder.resolve()), **more) for k, folder in enumerate(dict.fromkeys(found), 1)]


def _folders(place: Path) -> list[Path]:
    """The run at a place, or those below it."""
    return [place] if (place / runs.CONFIG).is_file() else sorted(p.parent for p in place.glob(f"**/{runs.CONFIG}"))


def _finished(folder: Path) -> bool:
    task = (runs.stored_config(folder) or {}).get("task", "generate")
    return task == "generate" and any((folder / CHECKPOINTS).glob("*.ckpt"))


def in_a_process(job: Job) -> dict[str, Any]:
    """The figures of one asset, from a process of its own; {"made": 0, "why": ...} if there can be none."""
    words = [sys.executable, "-m", "benchmarks.export_job", json.dumps(asdict(job))]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    if done.returncode == FAILED:
        return {"made": 0, "why": done.stderr.strip().splitlines()[-1]}
    if done.returncode:
        raise RuntimeError(f"{job.name}: the process ended with code {done.returncode}: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def table(jobs: Sequence[Job], measure: Measure = in_a_process) -> Table:
    """Every rule over the jobs; the first of each kind is made twice."""
    measured: list[dict[str, Any]] = []
    kinds: set[str] = set()
    for job in jobs:
        found = measure(job)
        if found["made"] and job.kind not in kinds:
            kinds.add(job.kind)
            again = measure(Job(**asdict(job) | {"bytes_only": True}))
            found["repeat"] = sum(again["hashes"].get(name) != value for name, value in found["hashes"].items())
        measured.append(found)
        print(f"{job.name}: " + (f"{found['seconds']:.1f} s" if found["made"] else found["why"]), flush=True)
    rows = [rule.row([float(m[rule.key]) for m in measured if m.get(rule.key) is not None])
            for rule in RULES if any(rule.key in m for m in measured)]  # fmt: skip
    return Table("Export, of runs" if jobs[0].run else "Export, of synthetic fields", rows, _notes(jobs, measured))


def _notes(jobs: Sequence[Job], measured: list[dict[str, Any]]) -> list[str]:
    first = jobs[0]
    what = ", ".join(Path(job.run).name if job.run else job.name for job in jobs)
    notes = [
        f"{len(jobs)} assets ({what}): {first.grid}^3 grid, {first.triangles} triangles, {first.texture} texels, "
        f"fitted to {first.pictures} pictures, compared with {first.views} others of {first.pixels} pixels."
    ]
    parts = [found["parts"] for found in measured if found["made"]]
    if parts:
        medians = (f"{name} {statistics.median(p[name] for p in parts):.2f}" for name in parts[0])
        notes.append("Seconds of the parts, those within the field's queries included (median): " + ", ".join(medians))
    return notes + [f"{job.name}: {found['why']}" for job, found in zip(jobs, measured, strict=True) if "why" in found]
