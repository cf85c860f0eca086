"""A worker: takes a job that nobody has, carries it out, takes the next; the same for every engine.

    RUN/claims/        who does what
    RUN/runs/KEY/      the folder of a job, as its own task leaves it
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from threedgen.config import ConfigError, registry
from threedgen.run import folder as runs
from threedgen.run.metrics import peak_memory, read_summary

from .claims import FAILED, FINAL, FINISHED, REFUSED, RELEASED, STUMBLED, Claim, Claims
from .jobs import Job, make_plan
from .options import JanusBenchmarkConfig

STOPPED = (130, 143)
"""Exit codes of a task that obeyed Ctrl-C or SIGTERM."""
PAUSE = 0.05, 2.0
"""Seconds between two looks at what others do: at first, and at most."""


def work(
    config: JanusBenchmarkConfig,
    table: dict[str, dict[str, registry.Entry]] | None = None,
    number: int = 0,
    told: Callable[[Job], None] | None = None,
) -> int:
    """Works in the folder ``config.out`` until every job is done; returns 0, or the code of a task that was stopped.

    ``table``: the registry of the process that began, plug-ins included. ``number`` of this worker: they begin at
    different jobs, so that they rarely want the same one. ``told`` hears of each job that this worker has ended.
    """
    registry.TABLE.update(table or {})
    folder = Path(str(config.out))
    jobs, claims, refused = make_plan(config).jobs, claims_of(config, folder), set[str]()
    left, pause = jobs[number % len(jobs) :] + jobs[: number % len(jobs)] if jobs else [], PAUSE[0]
    while True:
        newest = claims.newest()
        left = [job for job in left if job.method not in refused and not over(claims, job, newest)]
        if not left:
            return 0
        taken = next(((job, claim) for job in left if (claim := claims.take(job.key, newest.get(job.key, 0)))), None)
        if taken is None:  # others have all that is left; they may be lost
            time.sleep(pause)
            pause = min(2 * pause, PAUSE[1])
            continue
        pause = PAUSE[0]
        job, claim = taken
        code = carry_out(job, claim, folder / "runs" / job.key, threads(config))
        if claim.told["state"] == REFUSED:
            refused.add(job.method)
        if told is not None and claim.told["state"] in FINAL:
            told(job)
        if code:
            return code


def claims_of(config: JanusBenchmarkConfig, folder: Path) -> Claims:
    return Claims(folder / "claims", config.heartbeat, config.lost_after, config.attempts)


def over(claims: Claims, job: Job, newest: dict[str, int]) -> bool:
    return job.key in newest and claims.told(job.key, newest[job.key]).get("state") in FINAL


def threads(config: JanusBenchmarkConfig) -> int | None:
    """CPU threads of a run: those that were asked for, or this worker's share of the machine."""
    if config.threads is not None or config.engine == "here":
        return config.threads
    if config.engine == "ray":
        return max(1, int(config.cpus))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // config.workers)


def carry_out(job: Job, claim: Claim, folder: Path, threads: int | None) -> int:
    """Runs, or goes on with, a job and says in its claim how it ended; returns 0, or the code of a stopped one."""
    config = job.config.model_copy(update={"out": str(folder), "threads": threads})
    with claim:
        forget_peak()
        try:
            begun, resume = runs.begin(config, job.method)
            with redirect_stdout(io.StringIO()):  # a quiet task still says where its results are
                code = registry.implementation("task", begun.task)(begun, resume=resume, quiet=True) or 0
        except ConfigError as error:
            begun_well = any((folder / "checkpoints").glob("*.ckpt"))
            claim.end(FAILED if begun_well else REFUSED, reason=str(error))
            return 0
        except (KeyboardInterrupt, SystemExit):
            claim.end(RELEASED)
            raise
        except Exception as error:
            claim.end(STUMBLED, reason=f"{type(error).__name__}: {error}")
            return 0
        if code in STOPPED:
            claim.end(RELEASED)
            return code
        summary: dict[str, Any] = read_summary(folder)
        if code:
            claim.end(FAILED, reason=str(summary.get("reason", f"its task ended with code {code}")))
        else:
            claim.end(FINISHED, memory_mib=summary.get("peak_memory_mib", peak_memory()))
    return 0


def forget_peak() -> None:
    """From now on the most memory of this process counts anew, so that a run does not answer for the one before."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or not allowed: the peak is then the worker's
        pass
