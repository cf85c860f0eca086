"""Measure the overhead of the Janus benchmark by engine and number of workers, with jobs that only wait."""

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
from threedgen.run.metrics import write_summary
from threedgen.systems.batch.jobs import make_all

from .table import Row, Table

WORKERS = (1, 2, 16, 64)
JOBS_PER_WORKER = 8
TIMES = "times.json"


class WaitConfig(RunConfig):
    """Options of the task `wait`, which only waits for `seconds`, so that all other time is overhead."""

    prompt: str = ""
    seconds: float = Field(10.0, ge=0)


def run(config: WaitConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task `wait`: wait, write start time, end time and process id to the file TIMES, return exit code 0."""
    start, folder = time.time(), Path(str(config.out))
    time.sleep(config.seconds)
    times = {"start": start, "end": time.time(), "worker": os.getpid()}
    (folder / TIMES).write_text(json.dumps(times), encoding="utf-8")
    write_summary(folder, config, config.seconds, status="finished")
    return 0


def table(seconds: float) -> Table:
    """Return a row for each engine and number of workers. Each job waits `seconds` seconds."""
    registry.register("task", "wait", "benchmarks.janus:run", "benchmarks.janus:WaitConfig")
    kinds = ["processes", *(["ray"] if installed("ray") else [])]
    rows = [row(engine, workers, seconds) for engine in kinds for workers in WORKERS]
    notes = [
        f"{JOBS_PER_WORKER} jobs of {seconds:g} s per worker. Start: time until every worker has started a job. "
        "Overhead: mean pause between two jobs of a worker after the start, as a percentage of the job time. Speed-up: "
        "jobs per second, including the start, relative to one worker without pauses."
    ]
    notes += [] if "ray" in kinds else ["Ray is not installed."]
    return Table("Janus benchmark: jobs that wait", rows, notes)


def row(engine: str, workers: int, seconds: float) -> Row:
    """Run the waiting jobs with an engine and a number of workers; return the row with their overhead."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, method = Path(temporary), Path(temporary) / "wait.yaml"
        method.write_text(f"task: wait\nseconds: {seconds}\n", encoding="utf-8")
        overrides = [
            f"methods=[{method}]",
            f"toybox={JOBS_PER_WORKER}",
            f"seeds={list(range(workers))}",
            f"engine={engine}",
        ]
        overrides += [f"workers={workers}", *(["cpus=0.01"] if engine == "ray" else [])]
        config = load("janus-benchmark", overrides, {"out": str(folder / "run")})
        jobs, start = config.plan().jobs, time.monotonic()
        code = make_all(config, jobs, folder / "run" / "runs", quiet=True)
        wall = time.monotonic() - start
        assert code == 0, code
        paths = sorted((folder / "run").glob(f"runs/*/{TIMES}"))
        times = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    assert len(times) == len(jobs), "missing jobs"
    by_worker: dict[int, list[tuple[float, float]]] = {}
    for job in sorted(times, key=lambda job: job["start"]):
        by_worker.setdefault(job["worker"], []).append((job["start"], job["end"]))
    first, last = min(job["start"] for job in times), max(job["end"] for job in times)
    full = max(own[0][0] for own in by_worker.values())
    pairs = [pair for own in by_worker.values() for pair in pairwise(own)]
    pauses = [next_start - end for (_, end), (next_start, _) in pairs if end >= full]
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
