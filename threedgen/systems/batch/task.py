"""The task "batch": makes many objects, and a page that shows them.

RUN/runs/KEY/      one run folder per prompt, config and seed
RUN/batch.csv      state of each object, with the reason if it was not made
RUN/gallery.html   page with all objects

The same command again makes the missing objects. To retry a failed object, delete its folder.
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

from .jobs import FINISHED, RECORD, make_all, plan
from .options import BatchConfig

if TYPE_CHECKING:
    from threedgen.train.task import Task

logger = logging.getLogger(__name__)
RUNS, TABLE, MISSING = "runs", "batch.csv", "missing"


def make(task: Task) -> None:
    """Make the missing objects, and write batch.csv and gallery.html. Raises Stopped after Ctrl-C."""
    jobs, root = plan(task.config), task.folder / RUNS
    if code := make_all(task.config, jobs, root, task.quiet):
        raise Stopped(code)
    rows = []
    for job in jobs:
        record = read_json(root / job.key / RECORD)
        state, reason = record.get("state", MISSING), record.get("reason", "")
        row = {"config": job.method, "prompt": job.prompt, "seed": job.seed, "state": state}
        rows.append(row | {"seconds": record.get("seconds"), "folder": f"{RUNS}/{job.key}", "reason": reason})
        if state != FINISHED:
            logger.warning("%s: %r, %s, seed %d (%s)", state, job.prompt, job.method, job.seed, reason or "not begun")
    with writing(task.folder):
        write_atomic(task.folder / TABLE, csv_table(rows))
        text, _ = gallery(root, task.folder)
        write_atomic(task.folder / NAME, text)
    task.summarise(objects=len(jobs), states=dict(Counter(row["state"] for row in rows)))


def run(config: BatchConfig, resume: object = None, quiet: bool = False) -> int:
    """Run the task, print the path of gallery.html, and return the exit code."""
    from threedgen.train.task import run_task  # torch, which the plan does not need

    return run_task(make, config, None, quiet, result=NAME, again=True)
