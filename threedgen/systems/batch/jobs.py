"""Jobs of a batch. A job makes one object from a prompt, a method and a seed, in its own run folder.

A method is a config name with optional key=value changes, such as "mvdream-toybox size=32".

    RUN/runs/KEY/job.json    state, method, reason of a failure, memory_mib, and the total seconds of all attempts

A job with state finished or failed is not run again.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from threedgen.config import ConfigError, find, load, plain, registry, split_override, task_of, tree_hash
from threedgen.config.errors import OutOfMemory
from threedgen.config.plain_file import read_json
from threedgen.config.registry import config_model
from threedgen.config.sections import RunConfig
from threedgen.run import folder as runs
from threedgen.run.disk import write_json
from threedgen.run.interrupts import STOP_CODES, Stopped
from threedgen.run.metrics import peak_memory, read_summary, reset_peak_memory
from threedgen.run.options import WorkersConfig
from threedgen.run.workers import run_jobs
from threedgen.systems.prompted import PromptedConfig

if TYPE_CHECKING:
    from .options import BatchConfig

OWN_KEYS = ("prompt", "seed", "out", "threads", "task")
"""Config keys that a batch sets for each job."""
RECORD = "job.json"
BEGUN, REFUSED, FINISHED, FAILED = "begun", "refused", "finished", "failed"
"""States of a job. Refused: its method could not start on this machine. Failed: it started, but made no object."""


@dataclass(frozen=True)
class Job:
    """One object to make.

    Attributes:
        method: config name and key=value changes.
        key: name of the run folder; it contains a hash of the config and is the same on every machine.
        config: checked config with prompt and seed, but without a run folder.
    """

    method: str
    prompt: str
    seed: int
    key: str
    config: RunConfig


def words_of(method: str) -> list[str]:
    """Split a method into its config name and its key=value changes. The config may be a file name with blanks."""
    return re.split(r"\s+(?=[A-Za-z_][\w.]*=)", method.strip())


def object_config(
    method: str, overrides: Sequence[str], prompt: str, key: str, by: str, spared: Mapping[str, object] | None = None
) -> RunConfig:
    """Load the config of a method. Raises ConfigError if its task does not make an object from a prompt.

    Args:
        overrides: key=value changes for all methods; those of the method itself win.
        key: config key that contains the method, for errors.
        by: name of the calling task, for errors.
        spared: further values by key; a value is used if the config has the first section of its key.
    """
    name, *own = words_of(method)
    overrides = [*overrides, *own]
    for place in (".".join(split_override(text)[0]) for text in overrides):
        if place in OWN_KEYS:
            raise ConfigError(f"{place} is set by {by} itself. Give it as its own key", "overrides")
    try:
        task = task_of(find(name))
        model = config_model("task", task)
        if not issubclass(model, RunConfig) or "prompt" not in model.model_fields:
            raise ConfigError(f"should be the config of a task that makes an object of a prompt (got {task})")
        fitting = {path: value for path, value in (spared or {}).items() if path.split(".")[0] in model.model_fields}
        made: RunConfig = load(name, overrides, {"prompt": prompt, **fitting})
        return made
    except ConfigError as error:
        raise ConfigError(f"{method}: {error}", key) from None


def job(method: str, base: RunConfig, prompt: str, seed: int) -> Job:
    """Create the job of a method for a prompt and a seed, from the config `base` of the method."""
    config = base.model_copy(update={"prompt": prompt, "seed": seed, "out": None, "threads": None})
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(words_of(method)[0]).stem).strip("-")[:40]
    words = runs.slug(prompt)[:-9][:40].strip("-")
    return Job(method, prompt, seed, f"{name}-{words}-{seed}-{tree_hash(plain(config))[:12]}", config)


def plan(config: BatchConfig) -> list[Job]:
    """Return all jobs of a batch, sorted by seed, then prompt, then method. Raises ConfigError."""
    prompts, methods = config.lines(), dict[str, RunConfig]()
    for method in config.configs:
        name, *own = words_of(method)
        base = object_config(method, config.overrides, prompts[0], "configs", "the batch")
        methods[" ".join([name, *config.overrides, *own])] = base
    return [
        job(method, base, prompt, seed)
        for seed in config.seeds
        for prompt in prompts
        for method, base in methods.items()
    ]


def check_prompts(methods: Mapping[str, RunConfig], prompts: Sequence[str]) -> None:
    """Raise ConfigError if the prior of a method knows no noun of a prompt. Other errors of the configs are ignored."""
    for method, config in methods.items():
        try:
            if isinstance(config, PromptedConfig):
                config.check_prompt(prompts)
        except ConfigError as error:
            if error.key == "prompt":
                raise ConfigError(f"{method}: {error.problem}", "prompts") from None


def write_record(folder: Path, state: str, **figures: object) -> None:
    """Update job.json in the folder of a job with its state and further entries."""
    write_json(folder / RECORD, read_json(folder / RECORD) | {"state": state, **figures})


def make(job: Job, root: Path, threads: int | None) -> str:
    """Run the task of a job in the folder ``root``/KEY, and return the state of the job.

    Raises Stopped, and all errors of the task except for ConfigError and OutOfMemory. Another attempt may succeed.
    """
    folder = root / job.key
    config = job.config.model_copy(update={"out": str(folder), "threads": threads})
    start, before = time.monotonic(), read_json(folder / RECORD).get("seconds", 0.0)
    state, figures = BEGUN, dict[str, object]()
    reset_peak_memory()
    try:
        config, resume = runs.open_run(config, job.method)
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
        has_run = any((folder / runs.CHECKPOINTS).glob("*.ckpt"))
        state, figures = FAILED if has_run else REFUSED, {"reason": str(error)}
    finally:
        figures["seconds"] = round(before + time.monotonic() - start, 3)
        write_record(folder, state, method=job.method, **figures)
    return state


def make_all(config: WorkersConfig, jobs: Sequence[Job], root: Path, quiet: bool) -> int:
    """Run the jobs that are neither finished nor failed, each in the folder ``root``/KEY, in parallel workers.

    After a method is refused, its remaining jobs are skipped. Returns 0, or the exit code of the signal that stopped
    the batch.
    """
    from threedgen.run.progress import Count  # torch, which the plan does not need
    from threedgen.run.threads import threads_each

    left = [job for job in jobs if read_json(root / job.key / RECORD).get("state") not in (FINISHED, FAILED)]
    refused = set[str]()
    with Count("objects", len(jobs), quiet, done=len(jobs) - len(left)) as count:

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
