"""The task "batch": a shelf of objects, and the page that shows it.

RUN/runs/KEY/      a run for each prompt, config and seed; KEY says which, and has a hash of its config
RUN/batch.csv      a line for each of them: its state, and the reason if there is no object
RUN/gallery.html   all of them

The same command goes on with those that are not over; one that failed is made again when its folder is deleted.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from threedgen.config.plain_file import read_json
from threedgen.run.disk import write_atomic, writing
from threedgen.run.interrupts import Stopped
from threedgen.run.metrics import csv_table
from threedgen.viewer.gallery import NAME, gallery

from .jobs import FINISHED, RECORD, Job, job, make_all, object_config, words_of
from .options import BatchConfig

if TYPE_CHECKING:
    from threedgen.train.task import Task

logger = logging.getLogger(__name__)
RUNS, TABLE, MISSING = "runs", "batch.csv", "missing"


def plan(config: BatchConfig) -> list[Job]:
    """All jobs, those of one seed before the next, each method with the changes of all. Raises ConfigError for a config
    that makes no objects."""
    prompts = config.lines()
    asked = config.overrides, prompts[0], "configs", "the batch"
    methods = {}
    for method in config.configs:
        name, *own = words_of(method)
        methods[" ".join([name, *config.overrides, *own])] = object_config(method, *asked)
    return [
        job(method, base, prompt, seed)
        for seed in config.seeds
        for prompt in prompts
        for method, base in methods.items()
    ]


def make(task: Task) -> None:
    """Makes what is not there, and the page. Raises Stopped after Ctrl-C."""
    config, jobs, root = task.config, plan(task.config), task.folder / RUNS
    if code := make_all(config, jobs, root, task.quiet):
        raise Stopped(code)
    rows = []
    for one in jobs:
        found = read_json(root / one.key / RECORD)
        state, reason = found.get("state", MISSING), found.get("reason", "")
        rows.append({"config": one.method, "prompt": one.prompt, "seed": one.seed, "state": state})
        rows[-1] |= {"seconds": found.get("seconds"), "folder": f"{RUNS}/{one.key}", "reason": reason}
        if state != FINISHED:
            logger.warning("%s: %r, %s, seed %d (%s)", state, one.prompt, one.method, one.seed, reason or "not begun")
    with writing(task.folder):
        write_atomic(task.folder / TABLE, csv_table(rows))
        text, _ = gallery(root, task.folder)
        write_atomic(task.folder / NAME, text)
    task.summarise(objects=len(jobs), states=dict(Counter(row["state"] for row in rows)))


def run(config: BatchConfig, resume: object = None, quiet: bool = False) -> int:
    """The task."""
    from threedgen.train.task import run_task  # torch, which the plan does without

    return run_task(make, config, None, quiet, result=NAME, again=True)
