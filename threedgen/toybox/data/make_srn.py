"""The task "make-srn-toybox": render marked toybox objects as scenes in the layout of the SRN archives.

    RUN/cars_train/cars-train-00000/{rgb,pose,intrinsics.txt}    random views
    RUN/cars_test/cars-test-00000/...                            views on a spiral; view 64 is the condition

Scenes are written atomically, so a killed run continues with the missing ones.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from threedgen.data.srn.reader import write_instance
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w, square_pixels
from threedgen.geometry.views import Views
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.run.seeding import numpy_generator
from threedgen.toybox.options import MakeSRNToyboxConfig, ToyboxPairsConfig
from threedgen.toybox.world.raycast import render
from threedgen.train.task import Task, run_task

from .marked import make_marked_object

WHITE = 1.0
SPLITS = ("train", "val", "test")
"""Names of the splits. The config fields of the same names have the number of scenes in each split."""


class Job(NamedTuple):
    """Scene to make: its family ("cars" or "chairs"), its split and its number in the split."""

    family: str
    split: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.family}-{self.split}-{self.number:05d}"

    def rng(self, seed: int, purpose: str) -> np.random.Generator:
        return numpy_generator(seed, self.number, f"{self.family} {self.split} {purpose}")


def make(task: Task) -> None:
    """Render and write the scenes of the run that do not exist. Raises Stopped after Ctrl-C."""
    config, every = task.config, list(jobs(task.config))
    with Interrupts() as interrupts, Count("scenes", len(every), task.quiet) as count:
        for job in every:
            interrupts.raise_if_stopped()
            target = task.folder / f"{job.family}_{job.split}" / job.name
            if not target.is_dir():
                write_instance(target, scene(config, job))
            count.add(1, job.name)
    folders = dict.fromkeys(f"{job.family}_{job.split}" for job in every)
    task.summarise(scenes=len(every), files=folders)


run = partial(run_task, make, again=True)


def jobs(config: MakeSRNToyboxConfig) -> Iterator[Job]:
    """Yield all scenes of a run, existing and missing ones, in order."""
    for family in config.families:
        for split in SPLITS:
            yield from (Job(family, split, index) for index in range(getattr(config, split)))


def scene(config: MakeSRNToyboxConfig, job: Job) -> Views:
    """Render the views of a scene on a white background, with their cameras."""
    asset, at = make_marked_object(job.family, job.rng(config.seed, "object"), job.number), viewpoints(config, job)
    fov = np.full(len(at), np.deg2rad(config.fov), np.float32)
    rendered = render([asset], np.zeros(len(at), np.int64), at.c2w.numpy(), fov, at.height, WHITE, config.supersample)
    return Views(torch.from_numpy(rendered.rgb), at)


def viewpoints(config: MakeSRNToyboxConfig, job: Job) -> Cameras:
    """Return the cameras of a scene, which look at the origin. Cameras of training scenes are uniformly distributed on
    a zone of a sphere. All val and test scenes have the same cameras, on a spiral."""
    if job.split == "train":
        rng, n = job.rng(config.seed, "cameras"), config.train_views
        low, high = np.sin(np.deg2rad(config.train_elevation))
        elevation, azimuth = np.arcsin(rng.uniform(low, high, n)), rng.uniform(0, 2 * np.pi, n)
    else:
        t = np.linspace(0, 1, config.test_views)
        elevation = np.deg2rad(config.test_elevation[0] + t * np.ptp(config.test_elevation))
        azimuth = 2 * np.pi * config.turns * t
    tan_half = np.tan(np.deg2rad(config.fov) / 2)
    el, az = (torch.from_numpy(np.asarray(angle, np.float32)) for angle in (elevation, azimuth))
    c2w = orbit_c2w(el, az, torch.full_like(az, config.relative_distance / float(tan_half)))
    focal = torch.full((len(c2w),), config.size / 2 / float(tan_half))
    return Cameras(c2w, Projection(square_pixels(focal, config.size, config.size)), config.size, config.size)


class ToyboxScenes:
    """Source of marked cars and chairs, in alternation. `make-srn-toybox` makes the same scenes from the same seed."""

    def __init__(self, config: ToyboxPairsConfig, size: int, seed: int) -> None:
        self.count, self.views, self.n_families = config.scenes, config.views, len(config.families)
        counts = {"train": config.scenes, "train_views": config.views}
        self.config = MakeSRNToyboxConfig(
            task="make-srn-toybox", seed=seed, families=config.families, size=size, **counts
        )

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Views:
        number, family = divmod(index, self.n_families)
        return scene(self.config, Job(self.config.families[family], "train", number))

    def describe(self) -> str:
        return f"marked toybox, seed {self.config.seed}, {', '.join(self.config.families)}, {self.count} scenes"
