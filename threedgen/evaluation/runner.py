"""Runner of all evaluations: items -> rows -> report.

    class Objects(Evaluation[ObjectsConfig, Case, Verdict]):
        def __init__(self, task): ...     sets `items`, what is evaluated
        def measure(self, item): ...      turns one item into one row
        def report(self, rows): ...       computes figures with intervals and calls `report.write_report`

    run = evaluation_task(Objects)

Slow parts of a row are kept in the run folder (`samples.py`, `kept_json`, runs of objects), so that a killed run
resumes after its last whole item, and a finished one only reports again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from threedgen.config.plain_file import read_json
from threedgen.config.sections import RunConfig
from threedgen.run.disk import write_json
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.run.workers import run_jobs
from threedgen.train.task import Stopped, Task, run_task

from .metrics.figures import Json

C = TypeVar("C", bound=RunConfig)
Item = TypeVar("Item")
Row = TypeVar("Row")
ATTEMPTS = 2
"""An item may lose its worker process once."""


class Evaluation(Generic[C, Item, Row]):
    """Base class of evaluations. The constructor raises ConfigError before any work for what cannot be evaluated.

    Attributes:
        stage: text of the progress bar.
        items: what is evaluated; an iterator may do slow work between its items.
        total: number of items; default: their length.
        work: `measure` as a function that worker processes can unpickle.
        workers: number of worker processes; 1: this process.
        interrupts, progress: those of the run, valid in `items` and `measure`.
    """

    stage = "evaluating"
    items: Iterable[Item]
    total: int | None = None
    work: Callable[[Item], Row] | None = None
    workers = 1
    interrupts: Interrupts
    progress: Count

    def __init__(self, task: Task) -> None:
        self.task, self.folder = task, task.folder
        self.config: C = task.config

    def prepare(self) -> None:
        """Do the work that comes before the first item. Raises ConfigError and Stopped."""

    def measure(self, item: Item) -> Row:
        """Turn an item into a row. Raises ConfigError and Stopped."""
        raise NotImplementedError

    def report(self, rows: list[Row]) -> None:
        """Write the report. With several workers the rows are in the order in which they were finished."""
        raise NotImplementedError


def measure_all(evaluation: Evaluation[C, Item, Row]) -> list[Row]:
    """Prepare an evaluation and measure its items. Raises ConfigError, and Stopped after Ctrl-C."""
    rows, items = list[Row](), evaluation.items
    evaluation.prepare()
    total = len(items) if isinstance(items, Sized) else evaluation.total or 0
    with Interrupts() as interrupts, Count(evaluation.stage, total, evaluation.task.quiet) as progress:
        evaluation.interrupts, evaluation.progress = interrupts, progress

        def done(item: Item, row: Row) -> None:
            rows.append(row)
            progress.add(1)

        if evaluation.workers > 1 and evaluation.work is not None:
            pool = partial(run_jobs, engine="processes", workers=evaluation.workers, attempts=ATTEMPTS)
            if code := pool(items, evaluation.work, done, interrupts=interrupts):
                raise Stopped(code)
        else:
            for item in items:
                interrupts.raise_if_stopped()
                done(item, evaluation.measure(item))
        interrupts.raise_if_stopped()
    return rows


def evaluate(kind: Callable[[Task], Evaluation[C, Item, Row]], task: Task) -> None:
    """Run an evaluation and write its report."""
    evaluation = kind(task)
    evaluation.report(measure_all(evaluation))


def evaluation_task(
    kind: Callable[[Task], Evaluation[C, Item, Row]], result: str = "report.md", files: tuple[str, ...] = ()
) -> Callable[..., int]:
    """Return the task of an evaluation for the registry; see `run_task`."""
    return partial(run_task, partial(evaluate, kind), result=result, files=files, again=True)


def kept_json(path: Path, make: Callable[[], Json], **key: object) -> Json:
    """Return the JSON object in a file, or make and write it.

    Args:
        key: plain data that determines the object, stored with it; if it differs, the object is made again.
    """
    found = read_json(path)
    if not found or not found.items() >= key.items():
        found = make() | key
        write_json(path, found)
    return found
