"""The task "batch": makes many objects, and an HTML page that shows them.

A job makes one object from a prompt, a method and a seed, in its own run folder. A method is a config name with
optional key=value changes, such as "mvdream-toybox size=32".

RUN/runs/KEY/            one run folder per job; RUN is the folder of the batch, KEY the `key` of the `Job`
RUN/runs/KEY/job.json    state, method, reason of a failure, peak memory in MiB, and the total seconds of all attempts
RUN/batch.csv            state, measured values and metrics of each object, or the reason why it was not made
RUN/gallery.html         page with all objects
RUN/set.glb              textured meshes of all objects with one shared texture, with the option atlas=true

The same command again makes the missing objects. To retry a failed object, delete its folder.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from threedgen.config import ConfigError, find, load, plain, plugins, registry, split_override, task_of, tree_hash
from threedgen.config.errors import OutOfMemory, errors_default_to_key, short, storage_error
from threedgen.config.plain_file import read_json
from threedgen.config.registry import config_model
from threedgen.config.sections import RunConfig
from threedgen.export.asset_folder import FOLDER as ASSET
from threedgen.export.asset_folder import MANIFEST, SET
from threedgen.run import folder as runs
from threedgen.run.disk import Tree, write_atomic, write_json, writing
from threedgen.run.interrupts import STOP_CODES, Stopped
from threedgen.run.metrics import csv_table, peak_memory, read_summary, reset_peak_memory
from threedgen.run.options import WorkersConfig
from threedgen.run.worker_pool import run_jobs
from threedgen.systems.prompted import PromptedConfig

if TYPE_CHECKING:
    from threedgen.train.task import Task

    from .options import BatchConfig

logger = logging.getLogger(__name__)

OWN_KEYS = ("prompt", "seed", "out", "threads", "task")  # config keys that a batch sets for each job
RECORD, RUNS, TABLE = runs.JOB, "runs", "batch.csv"
STARTED, REFUSED, FINISHED, FAILED, SKIPPED = "started", "refused", "finished", "failed", "skipped"
"""States of a job. Started: not complete yet. Refused: its method could not start on this machine. Failed: it started,
but made no object. Skipped: the prompt names no object that the prior (diffusion model) knows."""


@dataclass(frozen=True)
class Job:
    """One object to make: method, prompt and seed, and the checked config of its run.

    Attributes:
        method: config name with optional key=value changes, such as "mvdream-toybox size=32".
        key: name of the job's run folder. It contains a hash of the config and is the same on every machine.
        config: config of the method, with the prompt and the seed.
    """

    method: str
    prompt: str
    seed: int
    key: str
    config: RunConfig


def words_of(method: str) -> list[str]:
    """Split a method into config name and key=value changes: "mvdream-toybox size=32" -> ["mvdream-toybox", "size=32"].

    The config name may be the path of a file, and may contain blanks.
    """
    return re.split(r"\s+(?=[A-Za-z_][\w.]*=)", method.strip())


def object_config(
    method: str,
    overrides: Sequence[str],
    prompt: str,
    key: str,
    caller: str,
    extra_values: Mapping[str, object] | None = None,
) -> RunConfig:
    """Load the config of a method for one prompt, with the key=value changes in `overrides` and in the method.

    Args:
        method: config name with optional key=value changes, such as "mvdream-toybox size=32".
        overrides: key=value changes for all methods. Changes in `method` replace them.
        prompt: prompt of the config.
        key: option of the calling task in which the user gave `method`, such as "configs"; errors name it.
        caller: name of the calling task in errors, such as "the batch".
        extra_values: {config key: value} of further values. Keys of sections that the config does not have are ignored.

    Raises:
        ConfigError: the config is invalid, an override sets a key that the calling task sets for each object (prompt,
            seed, out, threads or task), or the task of the config does not make an object from a prompt.
    """
    name, *own = words_of(method)
    overrides = [*overrides, *own]
    with errors_default_to_key("overrides"):
        for place in (".".join(split_override(text)[0]) for text in overrides):
            if place in OWN_KEYS:
                raise ConfigError(f"{place} is set by {caller} itself. Give it as its own key")
    try:
        task = task_of(find(name))
        model = config_model("task", task)
        if not issubclass(model, RunConfig) or "prompt" not in model.model_fields:
            raise ConfigError(f"should be the config of a task that makes an object of a prompt (got {task})")
        values = (extra_values or {}).items()
        fitting = {path: value for path, value in values if path.split(".")[0] in model.model_fields}
        return load(name, overrides, {"prompt": prompt, **fitting})
    except ConfigError as error:
        raise ConfigError(f"{method}: {error}", key) from None


def run_key(name: str, text: str, seed: int, config: RunConfig) -> str:
    """Return the name of a run folder: `name`, the first words of `text`, the seed, and a hash of the run's config."""
    return f"{name}-{runs.slug(text)[:-9][:40].strip('-')}-{seed}-{tree_hash(plain(config))[:12]}"


def job(method: str, base: RunConfig, prompt: str, seed: int) -> Job:
    """Create the job of one object.

    `method` is a config name with optional key=value changes, and `base` the config of this method (`object_config`).
    The config of the job is `base` with `prompt` and `seed`. The options `out` (run folder) and `threads` of the config
    are None; the function `make`, which runs the job, sets them.
    """
    config = base.model_copy(update={"prompt": prompt, "seed": seed, "out": None, "threads": None})
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(words_of(method)[0]).stem).strip("-")[:40]
    return Job(method, prompt, seed, run_key(name, prompt, seed, config), config)


def plan(config: BatchConfig) -> list[Job]:
    """Return all jobs of a batch, ordered by seed, then prompt, then method (config name with key=value changes).

    Raises ConfigError if the prompt file or the config of a method cannot be used.
    """
    prompts, methods = config.lines(), dict[str, RunConfig]()
    style = {"export.palette": config.style} if config.style else None
    for method in config.configs:
        name, *own = words_of(method)
        base = object_config(method, config.overrides, prompts[0], "configs", "the batch", style)
        methods[" ".join([name, *config.overrides, *own])] = base
    order = itertools.product(config.seeds, prompts, methods.items())
    return [job(method, base, prompt, seed) for seed, prompt, (method, base) in order]


def unknown_objects(methods: Mapping[str, RunConfig], prompts: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return {(method, prompt): reason} for prompts that name no object that the prior (diffusion model) knows.

    Each prompt is checked with the config of each method, and other errors of the configs are ignored. `methods` is
    {method: config}, where a method is a config name with key=value changes.
    """
    reasons: dict[tuple[str, str], str] = {}
    for (method, config), prompt in itertools.product(methods.items(), prompts):
        try:
            if isinstance(config, PromptedConfig):
                config.model_copy(update={"prompt": prompt}).check_prompt()
        except ConfigError as error:
            if error.key == "prompt":
                reasons[method, prompt] = f"{method}: {error.problem}"
    return reasons


def check_prompts(methods: Mapping[str, RunConfig], prompts: Iterable[str]) -> None:
    """Raise ConfigError if a prompt names no object that the prior (diffusion model) of a method knows.

    `methods` is {method: config}, where a method is a config name with key=value changes.
    """
    if unknown := unknown_objects(methods, prompts):
        (first, _), reason = next(iter(unknown.items()))
        _, *rest = [short(prompt) for method, prompt in unknown if method == first]
        named = [*rest[:2], *([f"{len(rest) - 2} more"] if len(rest) > 2 else [])]
        raise ConfigError(reason + (f"; so do {' and '.join(named)}" if rest else ""), "prompts")


def figures(folder: Path) -> Tree:
    """Read values of a finished object from its run folder: {column name of batch.csv: value}.

    The asset is the exported textured mesh. A value that is not recorded is None. The columns are:

    - "memory_mib": peak memory of the run in MiB
    - "triangles": number of triangles of the asset at full detail
    - "texture": side of the asset's texture in texels
    - "height_m": height of the asset in metres
    - "bytes": size of the asset's main file in bytes
    """
    asset = read_json(folder / ASSET / MANIFEST)
    sizes, levels = asset.get("size_m") or {}, asset.get("levels") or {}
    return {
        "memory_mib": read_json(folder / RECORD).get("memory_mib"),
        "triangles": next(iter(levels.values()), None),
        "texture": asset.get("texture"),
        "height_m": sizes.get("high"),
        "bytes": next(iter((asset.get("files") or {}).values()), None),
    }


def metrics(folder: Path) -> Tree:
    """Return the metrics of plug-ins in the summary.json of a run folder, by name; {} if there are none."""
    found = read_summary(folder).get("metrics")
    return found if isinstance(found, dict) else {}


def write_record(folder: Path, state: str, **figures: object) -> None:
    earlier = read_json(folder / RECORD)
    earlier.pop("reason", None)  # of an earlier attempt
    write_json(folder / RECORD, earlier | {"state": state, **figures})


def make(job: Job, root: Path, threads: int | None) -> str:
    """Run the task of a job in the folder root/KEY, where KEY is `job.key`. Return the job's final state.

    The state is "finished", "failed" (started, but made no object) or "refused" (could not start). It is also written
    to job.json in the folder. `threads` is the number of CPU threads. Raises Stopped after Ctrl-C or SIGTERM. Other
    errors are passed on: the caller can retry. A training uses one device.
    """
    folder = root / job.key
    config = job.config.model_copy(update={"out": str(folder), "threads": threads})
    start, before = time.monotonic(), read_json(folder / RECORD).get("seconds", 0.0)
    state, figures = STARTED, dict[str, object]()
    reset_peak_memory()
    try:
        config, resume = runs.open_run(runs.on_one_device(config), job.method)
        with redirect_stdout(io.StringIO()):  # a quiet task still prints the path of its results
            code = registry.implementation("task", config.task)(config, resume=resume, quiet=True) or 0
        if code in STOP_CODES:
            raise Stopped(code)
        summary = read_summary(folder)
        if code:
            state, figures = FAILED, {"reason": summary.get("reason", f"its task ended with code {code}")}
        else:
            state, figures = FINISHED, {"memory_mib": summary.get("peak_memory_mib", peak_memory())}
    except (ConfigError, OutOfMemory) as error:
        if storage_error(error):  # the disk is at fault, not the job
            raise
        has_run = any((folder / runs.CHECKPOINTS).glob("*.ckpt"))
        state, figures = FAILED if has_run else REFUSED, {"reason": str(error)}
    finally:
        figures["seconds"] = round(before + time.monotonic() - start, 3)
        write_record(folder, state, method=job.method, **figures)
    return state


def make_all(config: WorkersConfig, jobs: Sequence[Job], root: Path, quiet: bool) -> int:
    """Run the jobs that are neither finished nor failed, in this process or in parallel worker processes.

    Each job has the folder root/KEY, where KEY is `job.key`. `config` has the options of the workers, such as their
    number. `quiet`: show no progress. A warning tells how many finished objects were made before an edit of a plug-in,
    such as a loss. If one job of a method (config name with key=value changes) cannot start, the remaining jobs of this
    method do not run. Returns the exit code: 0, or 130 after Ctrl-C, 143 after SIGTERM.
    """
    from threedgen.run.progress import ProgressDisplay  # this and `run` import torch, which the plan does not need
    from threedgen.run.threads import threads_each

    states = [read_json(root / job.key / RECORD).get("state") for job in jobs]
    left = [job for job, state in zip(jobs, states, strict=True) if state not in (FINISHED, FAILED)]
    kept = [root / job.key for job, state in zip(jobs, states, strict=True) if state == FINISHED]
    old = Counter(file for folder in kept for file in plugins.changed(read_summary(folder).get("plugins")))
    for file, n in old.items():
        text = "%d finished objects in %s are of another version of %s. Delete their folders, or choose another out"
        logger.warning(text, n, root, file)
    refused = set[str]()
    with ProgressDisplay("objects", len(jobs), quiet, done=len(jobs) - len(left)) as count:

        def on_start(job: Job) -> None:
            name, place = f"{job.method} {job.prompt} {job.seed}", str(root / job.key)
            count.note(name, [*count.left(), place])
            count.say(lambda: [name, place])

        def on_done(job: Job, state: str) -> None:
            if state == REFUSED:
                refused.add(job.method)
            else:
                count.add(1)

        def on_failed(job: Job, reason: str) -> None:
            problem = f"given up after {config.attempts} attempts: {reason}"
            write_record(root / job.key, FAILED, method=job.method, reason=problem)
            count.add(1)

        waiting = (job for job in left if job.method not in refused)
        work = partial(make, root=Path(os.path.abspath(root)), threads=threads_each(config))
        return run_jobs(waiting, work, on_done, on_failed, config, on_start)


def write_atlas(keys: Sequence[str], root: Path) -> None:
    # write the assets of the runs root/KEY to one file, in the folder of the gallery
    from threedgen.export.files.atlas import write_set

    try:
        notes = write_set({key: root / key / ASSET for key in keys}, root.parent / SET)
    except ConfigError as error:
        notes = [str(error)]
    for note in notes:
        logger.warning("%s", note)


def run(config: BatchConfig, resume: object = None, quiet: bool = False) -> int:
    from threedgen.train.task import run_task
    from threedgen.viewer.gallery import NAME, gallery

    def make_missing(task: Task) -> None:
        jobs, root = plan(config), task.folder / RUNS
        unknown = unknown_objects({job.method: job.config for job in jobs}, config.lines())
        for (_, prompt), reason in unknown.items():
            logger.warning("skipped: %r (%s)", prompt, reason)
        if code := make_all(config, [job for job in jobs if (job.method, job.prompt) not in unknown], root, quiet):
            raise Stopped(code)
        rows = []
        for job in jobs:
            record = read_json(root / job.key / RECORD)
            state, reason = record.get("state", "missing"), record.get("reason", "")
            if (job.method, job.prompt) in unknown:
                state, reason = SKIPPED, unknown[job.method, job.prompt]
            row = {"config": job.method, "prompt": job.prompt, "seed": job.seed, "state": state}
            row |= {"seconds": record.get("seconds"), **figures(root / job.key)}
            row |= {"folder": f"{RUNS}/{job.key}", "reason": reason}
            rows.append(row | {f"metrics.{name}": value for name, value in metrics(root / job.key).items()})
            if state != FINISHED:
                named = (state, job.prompt, job.method, job.seed, reason or "not started")
                logger.warning("%s: %r, %s, seed %d (%s)", *named)
        with writing(task.folder):
            if config.atlas:
                write_atlas([job.key for job, row in zip(jobs, rows, strict=True) if row["state"] == FINISHED], root)
            write_atomic(task.folder / TABLE, csv_table(rows))
            text, _ = gallery(root, task.folder)
            write_atomic(task.folder / NAME, text)
        task.summarise(objects=len(jobs), states=dict(Counter(row["state"] for row in rows)))

    return run_task(make_missing, config, None, quiet, result=NAME, rerun_finished=True)
