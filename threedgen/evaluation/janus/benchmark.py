"""Carries out the task "janus-benchmark": makes prompts x methods x seeds, and counts the objects with two fronts.

The same command goes on with what is not finished: RUN/runs/KEY/ is the run of one job and how it ended,
RUN/looks/ what the meter saw of each, RUN/meter.json the meter's errors, measured once.
"""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

from threedgen.config.plain_file import read_json
from threedgen.evaluation.tables import read_or_make
from threedgen.evaluation.toybox.held_out import without_front
from threedgen.run.folder import slug
from threedgen.run.progress import Count
from threedgen.run.threads import set_threads
from threedgen.systems.batch.jobs import FAILED, FINISHED, RECORD, REFUSED, make_all
from threedgen.train.task import Stopped, Task, run_task

from .jobs import Plan, make_plan, reasons
from .meter import Meter
from .meter_errors import measure
from .options import UNREAD, JanusBenchmarkConfig, JanusScoreConfig, MeteredConfig, asset_files, folder_of_assets
from .rates import ErrorRates
from .report import Report
from .results import Reader, Result, rows

logger = logging.getLogger(__name__)

NOT_READ = "only GLB, glTF, OBJ and PLY files are read"


def evaluate(task: Task) -> None:
    """Makes, classifies, reports. Raises ConfigError before any work if something is missing."""
    config: JanusBenchmarkConfig = task.config
    plan = make_plan(config)
    for note in plan.notes():
        logger.warning("%s", note)
    Meter(config.meter)  # a classifier that is missing is said before hours of work
    if code := make_all(config, plan.jobs, task.folder / "runs", task.quiet):
        raise Stopped(code)
    set_threads(config.threads)
    rates = error_rates(task)
    results = collect(task, plan, rates)
    table = rows(config.methods, results, plan.prompts, rates, plan.refused)
    Report(task, table, results, rates, plan.left_out).finish()


def error_rates(task: Task) -> ErrorRates | None:
    """Measures the meter's errors, or reads those of the same meter from RUN/meter.json; None if not asked for."""
    config: MeteredConfig = task.config
    if not config.truth.objects:
        return None
    asked = {key: getattr(config, key).model_dump(mode="json") for key in ("meter", "truth")} | {"seed": config.seed}

    def rates() -> dict[str, Any]:
        return measure(Meter(config.meter), config.truth, config.seed, task.quiet).rates.plain()

    return ErrorRates.from_plain(read_or_make(task.folder / "meter.json", rates, **asked))


def collect(task: Task, plan: Plan, rates: ErrorRates | None) -> list[Result]:
    """Looks at the object of each job. Methods that turned out not to run are added to ``plan.refused``."""
    config, folder = task.config, task.folder
    results, reader = [], Reader(config.meter, plan.prompts, folder / "looks", rates)
    with Count("looking", len(plan.jobs), task.quiet) as count:
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


def evaluate_files(task: Task) -> None:
    """Carries out the task "janus-score": the same table and page for GLB, OBJ and PLY files that somebody made.

    ASSETS/METHOD/a-blue-dog.glb, or ASSETS/a-blue-dog.glb: a folder in the folder is a method, the name of a file its
    prompt, unless `prompts` says another. Files are moved to the middle and scaled, and may face any way. Raises
    ConfigError.
    """
    config: JanusScoreConfig = task.config
    assets = folder_of_assets(config.assets, "assets")
    found = []
    for path in asset_files(assets):
        first, *inside = path.relative_to(assets).parts
        found.append((path, first if inside else assets.resolve().name, prompt_of(path, config)))
    frontless = without_front([prompt for _, _, prompt in found])
    kept = [asset for asset in found if asset[2] not in frontless]
    unread = {path.relative_to(assets).as_posix(): NOT_READ for path in asset_files(assets, UNREAD)}
    prompts = list(dict.fromkeys(prompt for _, _, prompt in kept))
    rates = error_rates(task)
    reader = Reader(config.meter, prompts, task.folder / "looks", rates, free=config.orientation == "free")
    results = []
    with Count("looking", len(kept), task.quiet) as count:
        for path, method, prompt in kept:
            name = slug(path.relative_to(assets).as_posix())
            looked = reader.read(path, name, prompt, config.up, fit=True)
            results.append(Result(method, prompt, None, name, **looked))
            count.add(1, prompt)
    table = rows(list(dict.fromkeys(method for _, method, _ in kept)), results, prompts, rates, {})
    Report(task, table, results, rates, reasons(frontless) | unread).finish()


def prompt_of(path: Path, config: JanusScoreConfig) -> str:
    """Words what a file shows: "a-blue_dog.glb" -> "a blue dog"."""
    return config.prompts.get(path.stem) or " ".join(re.split(r"[\s_-]+", path.stem)).strip() or path.stem


FILES = ("report.html", "methods.csv", "assets.csv")
run = partial(run_task, evaluate, result=FILES[0], files=FILES, again=True)
score = partial(run_task, evaluate_files, result=FILES[0], files=FILES, again=True)
