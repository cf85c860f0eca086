"""Runner of all evaluations. An evaluation measures items, such as scenes, and reports the results, called rows.

    class Objects(Evaluation[ObjectsConfig, Case, Verdict]):
        def __init__(self, task): ...     sets `items`, such as scenes or prompts
        def measure(self, item): ...      turns one item into one row
        def report(self, rows): ...       computes metrics with intervals and calls `report.write_report`

    run = evaluation_task(Objects)

Slow parts of a row are written to the run folder (`cached_views`, `cached_json`). A killed run therefore resumes after
its last whole item, and a finished run only writes its report again.
"""

import logging
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from threedgen.config.plain_file import read_json
from threedgen.config.sections import RunConfig
from threedgen.evaluation.metrics.figures import Json
from threedgen.geometry.images import to_uint8
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.prior import Prior
from threedgen.run.arrays import Array
from threedgen.run.disk import make_folder, write_atomic, write_json
from threedgen.run.interrupts import Interrupts
from threedgen.run.options import WorkersConfig
from threedgen.run.progress import ProgressDisplay
from threedgen.run.worker_pool import run_jobs
from threedgen.train.task import Stopped, Task, run_task

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=RunConfig)
Item = TypeVar("Item")
Row = TypeVar("Row")
ATTEMPTS = 2


class Evaluation(Generic[C, Item, Row]):
    """Base class of evaluations. The runner calls `prepare`, `measure` for each item (result: a row), and `report`.

    A subclass sets ``items`` in its constructor, whose argument is the task (the run). It implements `measure(item)`,
    which returns the row of an item, such as its metrics, and `report(rows)`, which writes the report of all rows. It
    may override `prepare()` for work before the first item. The constructor checks the config and raises ConfigError
    for invalid options before any slow work. `prepare` and `measure` raise ConfigError for unusable input, and Stopped
    after Ctrl-C. Type variables: C is the class of the config, Item of an item, Row of the result of an item.

    Attributes:
        stage: label of the progress bar.
        items: objects, scenes or other units to measure. An iterator may do slow work between its items.
        total: number of items. It is needed only if ``items`` has no length.
        work: function that measures an item and can be pickled for worker processes; None: `measure`, in this process.
        workers: number of worker processes. With 1, items are measured in this process.
        interrupts: handler of Ctrl-C, which exists while items are measured.
        progress: progress bar, which exists while items are measured.
    """

    stage = "evaluating"
    items: Iterable[Item]
    total: int | None = None
    work: Callable[[Item], Row] | None = None
    workers = 1
    interrupts: Interrupts
    progress: ProgressDisplay

    def __init__(self, task: Task) -> None:
        self.task, self.folder = task, task.folder
        self.config: C = task.config

    def prepare(self) -> None:
        """Do the work that is needed before the first item is measured. The base class does nothing."""

    def measure(self, item: Item) -> Row:
        raise NotImplementedError

    def report(self, rows: list[Row]) -> None:
        """Write the report. With several workers, ``rows`` are in the order in which their items were finished."""
        raise NotImplementedError


def measure_all(evaluation: Evaluation[C, Item, Row]) -> list[Row]:
    rows, items = list[Row](), evaluation.items
    evaluation.prepare()
    total = len(items) if isinstance(items, Sized) else evaluation.total or 0
    with Interrupts() as interrupts, ProgressDisplay(evaluation.stage, total, evaluation.task.quiet) as progress:
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
    """Return the function run(config, resume, quiet) -> exit code, which runs an evaluation as a task of the CLI.

    Its arguments are those of `run_task`: config of the task, folder of the run to resume or None, and whether to show
    no progress. ``kind`` is the class of the evaluation. ``result`` is the main result file in the run folder, whose
    path is printed. ``files`` are names of result files in the run folder; summary.json lists those that exist.
    """
    return partial(run_task, partial(evaluate, kind), result=result, files=files, rerun_finished=True)


def cached_json(path: Path, make: Callable[[], Json], **key: object) -> Json:
    """Return the JSON object in the file ``path`` if it is up to date; otherwise make and write a new object.

    It is up to date if it has all entries ``key`` with equal values, such as "seed": 1 for ``seed=1``. ``make`` returns
    a new object without these entries, which are then added.
    """
    found = read_json(path)
    if not found or not found.items() >= key.items():
        found = make() | key
        write_json(path, found)
    return found


RELATIVE_DISTANCE, FOV = 0.95, np.deg2rad(40.0)
"""Cameras of `ring_poses`: the distance from the origin is RELATIVE_DISTANCE / tan(FOV / 2) world units, with the
vertical field of view FOV in radians."""
Ring = tuple[np.ndarray, float]  # cameras around the origin at one elevation: azimuths (V,) and elevation, in radians


def random_ring(rng: np.random.Generator, n_view: int, elevation_range: tuple[float, float]) -> Ring:
    """Return `n_view` evenly spaced cameras. The azimuth of the first camera and the common elevation are random.

    `elevation_range` is in degrees. The result is (azimuths (V,), elevation) in radians; azimuth 0 is at +x.
    """
    azimuth = rng.uniform(0, 2 * np.pi) + 2 * np.pi / n_view * np.arange(n_view)
    return azimuth % (2 * np.pi), float(np.deg2rad(rng.uniform(*elevation_range)))


def ring_poses(ring: Ring) -> Tensor:
    """Return the camera-to-world poses (V, 4, 4), OpenGL axes, of a ring of cameras that look at the origin.

    ``ring`` is (azimuths (V,), elevation) in radians, in a world with z up and azimuth 0 at +x. The distance to the
    origin is 0.95 / tan(FOV / 2) = 2.61 world units, with the vertical field of view FOV of 40 degrees.
    """
    azimuth = torch.from_numpy(ring[0]).float()
    distance = RELATIVE_DISTANCE / np.tan(FOV / 2)
    return orbit_c2w(torch.full_like(azimuth, ring[1]), azimuth, torch.full_like(azimuth, distance))


def sample_objects(
    prior: Prior,
    prompts: Sequence[str],
    c2w: Tensor,
    rngs: list[torch.Generator],
    steps: int,
    guidance_scale: float,
    negative_prompt: str = "",
) -> Array:
    """Sample V views of each of N prompts in one batch. Return images (N, V, H, W, 3), uint8.

    Args:
        prior: diffusion model to sample.
        prompts: N prompts.
        c2w: camera-to-world poses (N, V, 4, 4), OpenGL axes, z up.
        rngs: one generator of noise per prompt.
        steps: number of denoising steps.
        guidance_scale: scale of classifier-free guidance.
        negative_prompt: negative prompt of all objects.
    """
    views = prior.sample(prompts, c2w, steps, guidance_scale, negative_prompt, rngs)
    return to_uint8(views.unflatten(0, (len(prompts), -1)))


def cached_views(path: Path, metadata: dict[str, str], sample: Callable[[], Array | Tensor]) -> Array:
    """Return the views (..., H, W, 3), uint8, in the safetensors file ``path``; if it is invalid, sample and write it.

    A file is valid if it is undamaged and its metadata are equal to ``metadata``. ``sample`` returns new views, uint8
    or floats in [0, 1].
    """
    views = read_views(path, metadata)
    if views is None:
        views = to_uint8(sample())
        write_views(path, views, metadata)
    return views


def write_views(path: Path, views: Array | Tensor, metadata: dict[str, str]) -> None:
    """Write views (..., H, W, 3), uint8 or floats in [0, 1], as the uint8 tensor "views" to a safetensors file.

    ``metadata``, which describes everything that determines the views, is stored as the metadata of the file.
    """
    make_folder(path.parent)
    write_atomic(path, save({"views": torch.from_numpy(to_uint8(views))}, metadata))


def read_views(path: Path, metadata: dict[str, str]) -> Array | None:
    """Read views (..., H, W, 3), uint8, from a safetensors file; None if missing, damaged or with other metadata."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() == metadata:
                return file.get_tensor("views").numpy()
        logger.warning("%s has views of another prior or other options; sampling them again", path)
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s); sampling it again", path, str(error).split("\n")[0])
    return None
