"""Objects to be made: a job for each prompt, config and seed, with a name that says what it is; and how one is made, or
gone on with, in a folder of its own, with a record of how that ended.

    RUN/runs/KEY/job.json    JSON: state, method, reason, memory_mib, and the seconds of all attempts together

A job whose record says finished or failed is over: so what was killed goes on with the others.
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
from typing import Any

from threedgen.config import ConfigError, find, load, plain, registry, split_override, task_of, tree_hash
from threedgen.config.errors import OutOfMemory
from threedgen.config.plain_file import read_json
from threedgen.config.registry import config_model
from threedgen.config.sections import RunConfig
from threedgen.run import folder as runs
from threedgen.run.disk import write_json
from threedgen.run.interrupts import STOP_CODES, Stopped
from threedgen.run.metrics import peak_memory, read_summary, reset_peak_memory
from threedgen.run.options import ENGINE_KEYS, WorkersConfig
from threedgen.run.workers import run_jobs
from threedgen.systems.prompted import PromptedConfig

OWN = ("prompt", "seed", "out", "threads", "task")
"""Keys of a config that are set for each job."""


@dataclass(frozen=True)
class Job:
    """One object to be made. ``method``: its config, with changes of its own; ``key``: name of its folder, with a hash
    of the config, so that the same job has the same name on every machine; ``config``: without a folder."""

    method: str
    prompt: str
    seed: int
    key: str
    config: Any


def words_of(method: str) -> list[str]:
    """A method's config, and its own key=value changes behind it; names of files may have blanks in them."""
    return re.split(r"\s+(?=[A-Za-z_][\w.]*=)", method.strip())


def object_config(
    method: str, overrides: Sequence[str], prompt: str, key: str, by: str, spared: dict[str, Any] | None = None
) -> Any:
    """The checked config of a method. ``key``: of the config that names it, ``by`` whom; ``spared``: values of keys,
    as far as it has their sections. Raises ConfigError if it cannot make an object of a prompt."""
    name, *own = words_of(method)
    overrides = [*overrides, *own]
    for place in (".".join(split_override(text)[0]) for text in overrides):
        if place in OWN:
            raise ConfigError(f"{place} is set by {by} itself; give it as its own key", "overrides")
    try:
        task = task_of(find(name))
        model = config_model("task", task)
        if not issubclass(model, RunConfig) or "prompt" not in model.model_fields:
            raise ConfigError(f"should be the config of a task that makes an object of a prompt (got {task})")
        fitting = {path: value for path, value in (spared or {}).items() if path.split(".")[0] in model.model_fields}
        return load(name, overrides, {"prompt": prompt, **fitting})
    except ConfigError as error:
        raise ConfigError(f"{method}: {error}", key) from None


def job(method: str, base: Any, prompt: str, seed: int) -> Job:
    """``base`` for another prompt and seed."""
    config = base.model_copy(update={"prompt": prompt, "seed": seed, "out": None, "threads": None})
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(words_of(method)[0]).stem).strip("-")[:40]
    words = runs.slug(prompt)[:-9][:40].strip("-")
    return Job(method, prompt, seed, f"{name}-{words}-{seed}-{tree_hash(plain(config))[:12]}", config)


def check_prompts(methods: Mapping[str, Any], prompts: Sequence[str]) -> None:
    """Does each method's prior know a thing that each prompt names? Raises ConfigError for `prompts`; what else may be
    wrong with a method, its own check says."""
    for method, config in methods.items():
        try:
            if isinstance(config, PromptedConfig):
                config.check_prompt(prompts)
        except ConfigError as error:
            if error.key == "prompt":
                raise ConfigError(f"{method}: {error.problem}", "prompts") from None


RECORD = "job.json"
BEGUN, REFUSED, FINISHED, FAILED = "begun", "refused", "finished", "failed"
OVER = (FINISHED, FAILED)
"""Refused: the method cannot run, as things are. Failed: it is no use."""


def write_record(folder: Path, state: str, **figures: Any) -> None:
    """Says how a job stands; what the old record says of anything else stays."""
    write_json(folder / RECORD, read_json(folder / RECORD) | {"state": state, **figures})


def make(job: Job, root: Path, threads: int | None) -> str:
    """Runs the task of a job in ``root``/KEY; returns the state. Raises Stopped if it was, and what its task raises
    (which may not come again) other than ConfigError and OutOfMemory."""
    folder = root / job.key
    config = job.config.model_copy(update={"out": str(folder), "threads": threads})
    begun, before = time.monotonic(), read_json(folder / RECORD).get("seconds", 0.0)
    state, figures = BEGUN, dict[str, Any]()
    reset_peak_memory()
    try:
        config, resume = runs.open_run(config, job.method)
        with redirect_stdout(io.StringIO()):  # a quiet task still says where its results are
            code = registry.implementation("task", config.task)(config, resume=resume, quiet=True) or 0
        if code in STOP_CODES:
            raise Stopped(code)
        summary = read_summary(folder)
        if code:
            state, figures = FAILED, {"reason": summary.get("reason", f"its task ended with code {code}")}
        else:
            state, figures = FINISHED, {"memory_mib": summary.get("peak_memory_mib", peak_memory())}
    except (ConfigError, OutOfMemory) as error:
        begun_well = any((folder / runs.CHECKPOINTS).glob("*.ckpt"))
        state, figures = FAILED if begun_well else REFUSED, {"reason": str(error)}
    finally:
        figures["seconds"] = round(before + time.monotonic() - begun, 3)
        write_record(folder, state, method=job.method, **figures)
    return state


def make_all(config: WorkersConfig, jobs: Sequence[Job], root: Path, quiet: bool) -> int:
    """Makes the objects that are not there, each in ``root``/KEY; returns 0, or the exit code for the signal that
    stopped it. A method that turns out not to run is not tried again."""
    from threedgen.run.progress import Count  # torch, which the plan of the jobs does without
    from threedgen.run.threads import threads_each

    left = [job for job in jobs if read_json(root / job.key / RECORD).get("state") not in OVER]
    refused = set[str]()
    with Count("objects", len(jobs), quiet, done=len(jobs) - len(left)) as count:

        def begun(job: Job) -> None:
            name, place = f"{job.method} {job.prompt} {job.seed}", str(root / job.key)
            count.note(name, [*count.left(), place])
            count.say(lambda: [name, place])

        def done(job: Job, state: str) -> None:
            if state == REFUSED:
                refused.add(job.method)
            else:
                count.add(1)

        def failed(job: Job, reason: str) -> None:
            given_up = f"given up after {config.attempts} attempts: {reason}"
            write_record(root / job.key, FAILED, method=job.method, reason=given_up)
            count.add(1)

        lacking = (job for job in left if job.method not in refused)
        work = partial(make, root=Path(os.path.abspath(root)), threads=threads_each(config))
        return run_jobs(lacking, work, done, failed, on_start=begun, **config.model_dump(include=set(ENGINE_KEYS)))
