"""The task "janus-benchmark": prompts x methods x seeds become objects, and the meter counts those with two fronts.

    RUN/runs/KEY/              the run of one job, keyed by what it is
    RUN/claims/                who does what (``claims.py``)
    RUN/looks/                 what the meter saw of each
    RUN/meter.json             the meter's errors, measured once
    RUN/report.html            table and contact sheets; report.json, methods.csv, assets.csv beside it

The same command, on this machine or on another that sees the folder, goes on or helps.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from threedgen.run.folder import write_atomic
from threedgen.run.metrics import write_summary
from threedgen.run.progress import Count
from threedgen.run.text import say
from threedgen.train.loop import set_threads

from .claims import FINAL, FINISHED, REFUSED, Claims
from .engines import employ
from .jobs import Job, Plan, make_plan
from .meter import Meter, described
from .options import JanusBenchmarkConfig, MeteredConfig
from .rates import ErrorRates
from .report import write
from .results import Reader, Result, rows
from .truth import measure
from .worker import claims_of

logger = logging.getLogger(__name__)


def run(config: JanusBenchmarkConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Make, look, report; returns the exit code. Raises ConfigError before any work if something is missing."""
    begun, folder = time.monotonic(), Path(str(config.out))
    plan = make_plan(config)
    for prompt, noun in plan.left_out.items():
        logger.warning("left out: %r, for a %s has no front", prompt, noun)
    for method, reason in plan.refused.items():
        logger.warning("left out: %s (%s)", method, reason)
    Meter(config.meter)  # a classifier that is missing is said before hours of work
    claims = claims_of(config, folder)
    forget_what_is_gone(claims, plan.jobs, folder)
    with Count("objects", len(plan.jobs), quiet, done=ended(claims, plan.jobs)) as count:

        def progress() -> int:
            done = ended(claims, plan.jobs)
            if done > count.done:
                count.add(done - count.done)
            return done

        code = employ(config, lambda job: count.add(1, job.prompt), progress)
    if code:
        return code
    set_threads(config.threads)
    rates = error_rates(config, folder, quiet)
    results = collect(config, plan, folder, rates, quiet)
    refused = plan.refused | refused_on_the_way(claims_of(config, folder), plan.jobs)
    table = rows(config.methods, results, plan.prompts, rates, refused)
    write(folder, config, table, results, rates, plan.left_out)
    write_summary(folder, config, time.monotonic() - begun, status="finished")
    if not quiet:
        say((folder / "report.md").read_text(encoding="utf-8"))
    say(str(folder / "report.html"))
    return 0


def forget_what_is_gone(claims: Claims, jobs: list[Job], folder: Path) -> None:
    """Jobs that were finished and whose folder somebody deleted are done again."""
    newest = claims.newest()
    for job in jobs:
        done = job.key in newest and claims.told(job.key, newest[job.key]).get("state") == FINISHED
        if done and not (folder / "runs" / job.key).is_dir():
            claims.forget(job.key)


def ended(claims: Claims, jobs: list[Job]) -> int:
    """How many jobs are finished, or no use."""
    newest = claims.newest()
    return sum(job.key in newest and claims.told(job.key, newest[job.key]).get("state") in FINAL for job in jobs)


def refused_on_the_way(claims: Claims, jobs: list[Job]) -> dict[str, str]:
    """Methods that turned out not to run when their first job began -> why."""
    newest, reasons = claims.newest(), {}
    for job in jobs:
        told = claims.told(job.key, newest[job.key]) if job.key in newest else {}
        if told.get("state") == REFUSED:
            reasons[job.method] = str(told["reason"])
    return reasons


def error_rates(config: MeteredConfig, folder: Path, quiet: bool) -> ErrorRates | None:
    """The meter's errors, from RUN/meter.json if they were measured there in the same way; None if not asked for."""
    if not config.truth.objects:
        return None
    asked = {"meter": described(config.meter), "truth": config.truth.model_dump(mode="json"), "seed": config.seed}
    path = folder / "meter.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if {key: found[key] for key in asked} == asked:
            return ErrorRates.from_plain(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    rates = measure(Meter(config.meter), config.truth, config.seed, quiet).rates
    write_atomic(path, json.dumps(rates.plain() | asked, indent=1) + "\n")
    return rates


def collect(
    config: JanusBenchmarkConfig, plan: Plan, folder: Path, rates: ErrorRates | None, quiet: bool
) -> list[Result]:
    """A result for each job."""
    claims, results = claims_of(config, folder), []
    newest = claims.newest()
    reader = Reader(config.meter, plan.prompts, folder / "looks", rates, free=False)
    with Count("looking", len(plan.jobs), quiet) as count:
        for job in plan.jobs:
            told: dict[str, Any] = claims.told(job.key, newest[job.key]) if job.key in newest else {}
            found: dict[str, Any] = {"state": "missing"}
            if told.get("state") == FINISHED:
                found = reader.read(folder / "runs" / job.key / config.mesh, job.key, job.prompt)
                found |= {"seconds": round(told["before"] + told["seconds"], 3), "memory_mib": told.get("memory_mib")}
            elif told.get("state") in FINAL:
                found = {"state": "failed", "reason": told.get("reason", "")}
            results.append(Result(job.method, job.prompt, job.seed, f"runs/{job.key}", **found))
            count.add(1, job.prompt)
    return results
