"""What the Janus benchmark adds to the work itself, by engine and number of workers: jobs that only wait."""

from __future__ import annotations

import json
import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from threedgen.config import load, registry
from threedgen.config.optional import installed
from threedgen.config.sections import RunConfig
from threedgen.evaluation.janus.jobs import make_plan
from threedgen.run.metrics import write_summary
from threedgen.systems.batch.jobs import make_all

from .table import Row, Table

WORKERS = (1, 2, 16, 64)
EACH = 8
"""Jobs for each worker."""
TIMES = "times.json"


class WaitConfig(RunConfig):
    """A task that takes a known time and makes nothing, so that what is measured is the benchmark around it."""

    prompt: str = ""
    seconds: float = Field(10.0, ge=0)


def run(config: WaitConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Leaves behind when it began and ended, and in which process."""
    begun, folder = time.time(), Path(str(config.out))
    time.sleep(config.seconds)
    times = {"begun": begun, "ended": time.time(), "worker": os.getpid()}
    (folder / TIMES).write_text(json.dumps(times), encoding="utf-8")
    write_summary(folder, config, config.seconds, status="finished")
    return 0


def table(seconds: float) -> Table:
    """A row for each engine and number of workers; jobs of ``seconds`` each."""
    registry.register("task", "wait", "benchmarks.janus:run", "benchmarks.janus:WaitConfig")
    kinds = ["processes", *(["ray"] if installed("ray") else [])]
    rows = [row(engine, workers, seconds) for engine in kinds for workers in WORKERS]
    notes = [
        f"{EACH} jobs of {seconds:g} s for each worker. Start: from the first job of the first worker to that of the "
        "last; so long the cores have processes to start. Overhead: the pause between two jobs of a worker as a share "
        "of a job, mean over those after the start. Speed-up: jobs a second, from the first beginning to the last end, "
        "over those of one worker that never pauses; the start counts."
    ]
    notes += [] if "ray" in kinds else ["Ray is not installed here."]
    return Table("Janus benchmark: jobs that wait", rows, notes)


def row(engine: str, workers: int, seconds: float) -> Row:
    with tempfile.TemporaryDirectory() as place:
        folder, method = Path(place), Path(place) / "wait.yaml"
        method.write_text(f"task: wait\nseconds: {seconds}\n", encoding="utf-8")
        words = [f"methods=[{method}]", f"toybox={EACH}", f"seeds={list(range(workers))}", f"engine={engine}"]
        words += [f"workers={workers}", *(["cpus=0.01"] if engine == "ray" else [])]
        config = load("janus-benchmark", words, {"out": str(folder / "run")})
        jobs, begun = make_plan(config).jobs, time.monotonic()
        code = make_all(config, jobs, folder / "run" / "runs", quiet=True)
        wall = time.monotonic() - begun
        assert code == 0, code
        paths = sorted((folder / "run").glob(f"runs/*/{TIMES}"))
        times = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    assert len(times) == len(jobs), "a job was lost"
    each: dict[int, list[tuple[float, float]]] = {}
    for job in sorted(times, key=lambda job: job["begun"]):
        each.setdefault(job["worker"], []).append((job["begun"], job["ended"]))
    first, last = min(job["begun"] for job in times), max(job["ended"] for job in times)
    full = max(own[0][0] for own in each.values())
    pairs = [pair for own in each.values() for pair in pairwise(own)]
    pauses = [begun - ended for (_, ended), (begun, _) in pairs if ended >= full]
    pause = sum(pauses) / len(pauses) if pauses else float("nan")
    return {
        "engine": engine,
        "workers": workers,
        "jobs": len(jobs),
        "start, s": full - first,
        "pause, ms": 1000 * pause,
        "overhead, %": 100 * pause / seconds,
        "speed-up": len(jobs) * seconds / (last - first),
        "seconds in all": wall,
    }
