"""What a benchmark has to do: a job for each prompt, method and seed, with a name that says what it is; and how one is
made, or gone on with, in a folder of its own, with a record of how that ended.

    RUN/runs/KEY/job.json    JSON: state, reason, memory_mib, and the seconds of all attempts together

A job whose record says finished or failed is over: so a benchmark that was killed goes on with the others.
"""

from __future__ import annotations

import io
import re
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threedgen.config import ConfigError, find, load, plain, registry, split_override, task_of, tree_hash
from threedgen.config.plain_file import read_json
from threedgen.config.registry import config_model
from threedgen.config.sections import RunConfig
from threedgen.evaluation.toybox.held_out import toybox_prompts, without_front
from threedgen.run import folder as runs
from threedgen.run.metrics import peak_memory, read_summary
from threedgen.run.workers import STOPPED, Stopped

from .options import JanusBenchmarkConfig

OWN = ("prompt", "seed", "out", "threads", "task")
"""Keys of a method that the benchmark sets."""
UNSEEN = {"export.enabled": False, "preview.enabled": False, "result.turntable.n_view": 8}
"""What would only cost time, for the mesh is what is looked at."""


@dataclass(frozen=True)
class Job:
    """One object to be made. ``key``: name of its folder, with a hash of the config, so that the same job has the same
    name on every machine; ``config``: without a folder."""

    method: str
    prompt: str
    seed: int
    key: str
    config: Any


@dataclass(frozen=True)
class Plan:
    """``refused``: methods that cannot run -> why. ``left_out``: prompts without a front -> their noun."""

    jobs: list[Job]
    prompts: list[str]
    refused: dict[str, str]
    left_out: dict[str, str]


def make_plan(config: JanusBenchmarkConfig) -> Plan:
    """All jobs, those of one seed before the next, and of one prompt together: a table that is begun compares already.

    Raises ConfigError for a method that is none, and if no prompt is left.
    """
    asked = list(config.prompts) or toybox_prompts(config.toybox, config.seed)
    left_out = without_front(asked)
    prompts = [prompt for prompt in asked if prompt not in left_out]
    if not prompts:
        nouns = ", ".join(sorted(set(left_out.values())))
        raise ConfigError(f"none of these things has a front ({nouns}); name some that do, such as a dog", "prompts")
    methods = {method: method_config(config, method, prompts[0]) for method in config.methods}
    refused: dict[str, str] = {}
    for method, base in methods.items():
        try:
            base.check()
        except ConfigError as error:
            refused[method] = str(error)
    jobs = [
        job(method, base, prompt, seed)
        for seed in config.seeds
        for prompt in prompts
        for method, base in methods.items()
        if method not in refused
    ]
    return Plan(jobs, prompts, refused, left_out)


def words_of(method: str) -> list[str]:
    """A method's config, and its own key=value changes behind it; names of files may have blanks in them."""
    return re.split(r"\s+(?=[A-Za-z_][\w.]*=)", method.strip())


def method_config(config: JanusBenchmarkConfig, method: str, prompt: str) -> Any:
    """The checked config of a method. Raises ConfigError if it cannot make an object of a prompt."""
    name, *own = words_of(method)
    overrides = [*config.overrides, *own]
    for key in (".".join(split_override(text)[0]) for text in overrides):
        if key in OWN:
            raise ConfigError(f"{key} is set by the benchmark itself; give it as its own key", "overrides")
    try:
        task = task_of(find(name))
        model = config_model("task", task)
        if not issubclass(model, RunConfig) or "prompt" not in model.model_fields:
            raise ConfigError(f"should be the config of a task that makes an object of a prompt (got {task})")
        spared = {key: value for key, value in UNSEEN.items() if key.split(".")[0] in model.model_fields}
        return load(name, overrides, {"prompt": prompt, **spared})
    except ConfigError as error:
        raise ConfigError(f"{method}: {error}", "methods") from None


def job(method: str, base: Any, prompt: str, seed: int) -> Job:
    """``base`` for another prompt and seed."""
    config = base.model_copy(update={"prompt": prompt, "seed": seed, "out": None, "threads": None})
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(words_of(method)[0]).stem).strip("-")[:40]
    words = runs.slug(prompt)[:-9][:40].strip("-")
    return Job(method, prompt, seed, f"{name}-{words}-{seed}-{tree_hash(plain(config))[:12]}", config)


RECORD = "job.json"
BEGUN, REFUSED, FINISHED, FAILED = "begun", "refused", "finished", "failed"
OVER = (FINISHED, FAILED)
"""Refused: the method cannot run, as things are. Failed: it is no use."""


def write_record(folder: Path, state: str, **figures: Any) -> None:
    """Says how a job stands; what the old record says of anything else stays."""
    runs.write_json(folder / RECORD, read_json(folder / RECORD) | {"state": state, **figures})


def make(job: Job, root: Path, threads: int | None) -> str:
    """Runs the task of a job in ``root``/KEY; returns the state. Raises Stopped if it was, and what its task raises
    (which may not come again) other than ConfigError."""
    folder = root / job.key
    config = job.config.model_copy(update={"out": str(folder), "threads": threads})
    begun, before = time.monotonic(), read_json(folder / RECORD).get("seconds", 0.0)
    state, figures = BEGUN, dict[str, Any]()
    forget_peak()
    try:
        config, resume = runs.begin(config, job.method)
        with redirect_stdout(io.StringIO()):  # a quiet task still says where its results are
            code = registry.implementation("task", config.task)(config, resume=resume, quiet=True) or 0
        if code in STOPPED:
            raise Stopped(code)
        summary = read_summary(folder)
        if code:
            state, figures = FAILED, {"reason": summary.get("reason", f"its task ended with code {code}")}
        else:
            state, figures = FINISHED, {"memory_mib": summary.get("peak_memory_mib", peak_memory())}
    except ConfigError as error:
        begun_well = any((folder / "checkpoints").glob("*.ckpt"))
        state, figures = FAILED if begun_well else REFUSED, {"reason": str(error)}
    finally:
        write_record(folder, state, seconds=round(before + time.monotonic() - begun, 3), **figures)
    return state


def forget_peak() -> None:
    """From now on the most memory of this process counts anew, so that a run does not answer for the one before."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # not Linux, or not allowed: the peak is then the worker's
        pass
