"""What the Janus benchmark adds to the work itself, by engine and number of workers: jobs that only wait."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from threedgen.config import load
from threedgen.evaluation.janus.engines import employ
from threedgen.evaluation.janus.jobs import make_plan
from threedgen.extras import installed

from . import janus_stub
from .table import Row, Table

WORKERS = (1, 2, 16, 64)
EACH = 5
"""Jobs for each worker."""


def table(seconds: float) -> Table:
    """A row for each engine and number of workers; jobs of ``seconds`` each."""
    janus_stub.register()
    kinds = ["processes", *(["ray"] if installed("ray") else [])]
    rows = [row(engine, workers, seconds) for engine in kinds for workers in WORKERS]
    notes = [
        f"{EACH} jobs of {seconds:g} s for each worker. Overhead: the pause between two jobs of a worker as a share of "
        "a job, mean over all. Speed-up: jobs a second, from the first beginning to the last end, over those of one "
        "worker that never pauses; workers begin one after the other, which counts."
    ]
    if not installed("ray"):
        notes.append("Ray is not installed here.")
    return Table("Janus benchmark: jobs that wait", rows, notes)


def row(engine: str, workers: int, seconds: float) -> Row:
    with tempfile.TemporaryDirectory() as place:
        folder, method = Path(place), Path(place) / "wait.yaml"
        method.write_text(f"task: wait\nseconds: {seconds}\n", encoding="utf-8")
        words = [f"methods=[{method}]", f"toybox={EACH}", f"seeds={list(range(workers))}", f"engine={engine}"]
        words += [f"workers={workers}", *(["cpus=0.01"] if engine == "ray" else [])]
        config = load("janus-benchmark", words, {"out": str(folder / "run")})
        jobs = len(make_plan(config).jobs)

        def done() -> list[Path]:
            return sorted((folder / "run").glob(f"runs/*/{janus_stub.TIMES}"))

        begun = time.monotonic()
        code = employ(config, lambda job: None, lambda: len(done()))
        wall = time.monotonic() - begun
        assert code == 0, code
        times = [json.loads(path.read_text(encoding="utf-8")) for path in done()]
    assert len(times) == jobs, "a job was lost"
    pauses = []
    for worker in {job["worker"] for job in times}:
        own = sorted((job["begun"], job["ended"]) for job in times if job["worker"] == worker)
        pauses += [later[0] - earlier[1] for earlier, later in zip(own, own[1:], strict=False)]
    span = max(job["ended"] for job in times) - min(job["begun"] for job in times)
    return {
        "engine": engine, "workers": workers, "jobs": jobs, "pause, ms": 1000 * sum(pauses) / len(pauses),
        "overhead, %": 100 * sum(pauses) / len(pauses) / seconds, "speed-up": jobs * seconds / span,
        "seconds in all": wall,
    }  # fmt: skip
