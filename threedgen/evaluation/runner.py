"""Runner of all evaluations. It measures each item, such as a scene, and writes a report of all rows.

    class Objects(Evaluation[ObjectsConfig, Case, Verdict]):
        def __init__(self, task): ...     sets `items`, such as scenes or prompts
        def measure(self, item): ...      turns one item into one row
        def report(self, rows): ...       computes metrics with intervals and calls `report.write_report`

    run = evaluation_task(Objects)

Slow parts of a row are written to the run folder (`samples.py`, `kept_json`). A killed run therefore resumes after its
last whole item, and a finished run only writes its report again.
"""

from collections.abc import Callable, Iterable, Sized
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from threedgen.config.plain_file import read_json
from threedgen.config.sections import RunConfig
from threedgen.run.disk import write_json
from threedgen.run.interrupts import Interrupts
from threedgen.run.options import WorkersConfig
from threedgen.run.progress import Count
from threedgen.run.workers import run_jobs
from threedgen.train.task import Stopped, Task, run_task

from .metrics.figures import Json

C = TypeVar("C", bound=RunConfig)
Item = TypeVar("Item")
Row = TypeVar("Row")
ATTEMPTS = 2


class Evaluation(Generic[C, Item, Row]):
    """Base class of evaluations: `prepare`, then `measure` each item (giving a row), then `report` all rows.

    The constructor checks the config and raises ConfigError before any slow work. `prepare` and `measure` raise
    ConfigError, or Stopped after Ctrl-C.

    Attributes:
        stage: label of the progress bar.
        items: objects, scenes or other units to measure. An iterator may do slow work between its items.
        total: number of items. It is needed only if ``items`` has no length.
        work: function like `measure` that can be pickled for worker processes.
        workers: number of worker processes. With 1, items are measured in this process.
        interrupts, progress: handler of Ctrl-C and progress bar, set while items are measured.
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
        """Do the work that is needed before the first item."""

    def measure(self, item: Item) -> Row:
        raise NotImplementedError

    def report(self, rows: list[Row]) -> None:
        """Write the report. With several workers, ``rows`` are in the order in which their items were finished."""
        raise NotImplementedError


def measure_all(evaluation: Evaluation[C, Item, Row]) -> list[Row]:
    rows, items = list[Row](), evaluation.items
    evaluation.prepare()
    total = len(items) if isinstance(items, Sized) else evaluation.total or 0
    with Interrupts() as interrupts, Count(evaluation.stage, total, evaluation.task.quiet) as progress:
        evaluation.interrupts, evaluation.progress = interrupts, progress

        def done(item: Item, row: Row) -> None:
            rows.append(row)
            progress.add(1)

        def failed(item: Item, reason: str) -> None:
            raise RuntimeError(f"an item failed: {reason}")

        if evaluation.workers > 1 and evaluation.work is not None:
            kind, count = evaluation.task.config.task, evaluation.workers
            options = WorkersConfig(task=kind, engine="processes", workers=count, attempts=ATTEMPTS)
            if code := run_jobs(items, evaluation.work, done, failed, options):
                raise Stopped(code)
        else:
            for item in items:
                interrupts.raise_if_stopped()
                done(item, evaluation.measure(item))
        interrupts.raise_if_stopped()
    return rows


def evaluate(kind: Callable[[Task], Evaluation[C, Item, Row]], task: Task) -> None:
    evaluation = kind(task)
    evaluation.report(measure_all(evaluation))


def evaluation_task(
    kind: Callable[[Task], Evaluation[C, Item, Row]], result: str = "report.md", files: tuple[str, ...] = ()
) -> Callable[..., int]:
    """Return the function that runs an evaluation as a task. ``kind`` is the class of the evaluation.

    ``result`` is the main result file in the run folder, whose path is printed. ``files`` are further result files.
    """
    return partial(run_task, partial(evaluate, kind), result=result, files=files, again=True)


def kept_json(path: Path, make: Callable[[], Json], **key: object) -> Json:
    """Return the JSON object in the file ``path`` if it has the entries ``key``. Otherwise call ``make`` for a new
    object, add the entries, and write it to the file."""
    found = read_json(path)
    if not found or not found.items() >= key.items():
        found = make() | key
        write_json(path, found)
    return found
