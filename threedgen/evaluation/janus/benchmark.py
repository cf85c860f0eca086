"""The task "janus-benchmark": prompts x methods x seeds become objects, and the meter counts those with two fronts.

    RUN/runs/KEY/              the run of one job, keyed by what it is, and how it ended (``jobs.py``)
    RUN/looks/                 what the meter saw of each
    RUN/meter.json             the meter's errors, measured once
    RUN/report.html            table and contact sheets; report.json, methods.csv, assets.csv beside it

The same command goes on with what is not finished.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from threedgen.evaluation.tables import write_json
from threedgen.run.metrics import read_json
from threedgen.run.progress import Count
from threedgen.run.workers import run_jobs
from threedgen.train.loop import set_threads

from .jobs import FAILED, FINISHED, OVER, RECORD, REFUSED, Job, Plan, make, make_plan, write_record
from .meter import Meter
from .meter_errors import measure
from .options import JanusBenchmarkConfig, MeteredConfig
from .rates import ErrorRates
from .report import Report
from .results import Reader, Result, rows

logger = logging.getLogger(__name__)


def run(config: JanusBenchmarkConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Make, classify, report; returns the exit code. Raises ConfigError before any work if something is missing."""
    begun, folder = time.monotonic(), Path(str(config.out))
    plan = make_plan(config)
    for prompt, noun in plan.left_out.items():
        logger.warning("left out: %r, for a %s has no front", prompt, noun)
    for method, reason in plan.refused.items():
        logger.warning("left out: %s (%s)", method, reason)
    Meter(config.meter)  # a classifier that is missing is said before hours of work
    if code := make_all(config, plan.jobs, folder / "runs", quiet):
        return code
    set_threads(config.threads)
    rates = error_rates(config, folder, quiet)
    results = collect(config, plan, folder, rates, quiet)
    table = rows(config.methods, results, plan.prompts, rates, plan.refused)
    return Report(config, table, results, rates, plan.left_out).finish(begun, quiet)


def make_all(config: JanusBenchmarkConfig, jobs: list[Job], root: Path, quiet: bool) -> int:
    """Makes the objects that are not there; returns 0, or the exit code for the signal that stopped it."""
    left = [job for job in jobs if read_json(root / job.key / RECORD).get("state") not in OVER]
    refused = set[str]()
    with Count("objects", len(jobs), quiet, done=len(jobs) - len(left)) as count:

        def done(job: Job, state: str) -> None:
            if state == REFUSED:
                refused.add(job.method)
            else:
                count.add(1, job.prompt)

        def failed(job: Job, reason: str) -> None:
            write_record(root / job.key, FAILED, reason=f"given up after {config.attempts} attempts: {reason}")
            count.add(1, job.prompt)

        return run_jobs(
            (job for job in left if job.method not in refused),
            partial(make, root=Path(os.path.abspath(root)), threads=threads(config)),
            done,
            failed,
            engine=config.engine,
            workers=config.workers,
            attempts=config.attempts,
            address=config.address,
            cpus=config.cpus,
            gpus=config.gpus,
        )


def threads(config: JanusBenchmarkConfig) -> int | None:
    """CPU threads of a run: those that were asked for, or this worker's share of the machine."""
    if config.threads is not None or config.engine == "here":
        return config.threads
    if config.engine == "ray":
        return max(1, int(config.cpus))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // config.workers)


def error_rates(config: MeteredConfig, folder: Path, quiet: bool) -> ErrorRates | None:
    """The meter's errors, from RUN/meter.json if they were measured there in the same way; None if not asked for."""
    if not config.truth.objects:
        return None
    asked = {key: getattr(config, key).model_dump(mode="json") for key in ("meter", "truth")} | {"seed": config.seed}
    path = folder / "meter.json"
    found = read_json(path)
    if found.items() >= asked.items():
        return ErrorRates.from_plain(found)
    rates = measure(Meter(config.meter), config.truth, config.seed, quiet).rates
    write_json(path, rates.plain() | asked)
    return rates


def collect(
    config: JanusBenchmarkConfig, plan: Plan, folder: Path, rates: ErrorRates | None, quiet: bool
) -> list[Result]:
    """A result for each job. Methods that turned out not to run are added to ``plan.refused``."""
    results, reader = [], Reader(config.meter, plan.prompts, folder / "looks", rates)
    with Count("looking", len(plan.jobs), quiet) as count:
        for job in plan.jobs:
            record = read_json(folder / "runs" / job.key / RECORD)
            state, found = record.get("state"), dict[str, Any](state="missing")
            if state == FINISHED:
                found = reader.read(folder / "runs" / job.key / config.mesh, job.key, job.prompt)
                found |= {"seconds": round(record["seconds"], 3), "memory_mib": record.get("memory_mib")}
            elif state == FAILED:
                found = {"state": "failed", "reason": record.get("reason", "")}
            elif state == REFUSED:
                plan.refused[job.method] = record["reason"]
            results.append(Result(job.method, job.prompt, job.seed, f"runs/{job.key}", **found))
            count.add(1, job.prompt)
    return results
