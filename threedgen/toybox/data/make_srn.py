"""Task "make-srn-toybox": render toybox cars and chairs in the layout of the SRN ShapeNet archives.

Each side of an object has a panel with a symbol, so that the sides differ.

    RUN/cars_train/cars-train-00000/{rgb,pose,intrinsics.txt}    random views of one object (a scene)
    RUN/cars_test/cars-test-00000/...                            views on a spiral; in evaluations, view 64 is the
                                                                 input, and all other views are predicted from it

The folders of chairs, and of the split "val" (views as in "test"), have names of the same form. Scenes are written
atomically, so a killed run continues with the missing scenes.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from threedgen.data.srn.reader import write_instance
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w, square_pixels
from threedgen.geometry.views import Views
from threedgen.run.seeding import numpy_generator
from threedgen.toybox.options import MakeSRNToyboxConfig, ToyboxPairsConfig
from threedgen.toybox.world import nouns  # noqa: F401  (registers the recipes)
from threedgen.toybox.world.builder import Builder, bounds
from threedgen.toybox.world.grammar import COLOURS, NOUNS, Spec, caption, colour_value, sample_colour
from threedgen.toybox.world.primitives import BOX, Asset, Primitive, inside
from threedgen.toybox.world.raycast import render
from threedgen.train.task import Task, run_task

FAMILIES = {"cars": "car", "chairs": "chair"}  # dict from SRN category to toybox noun
SIDES = {
    "front": ((1.0, 0.0), (0.0, 90.0, 0.0)),
    "left": ((0.0, 1.0), (-90.0, 0.0, 0.0)),
    "back": ((-1.0, 0.0), (0.0, -90.0, 0.0)),
    "right": ((0.0, -1.0), (90.0, 0.0, 0.0)),
}
"""Dict from side to a pair: outward direction (x, y), and angles about x, y and z in degrees that turn +z to it."""
SYMBOLS = ("disc", "ring", "cone", "bar", "cross")
ATTACHMENTS = ("ball", "horn", "rod", "block")
ATTACHMENT_PROBABILITY = 0.7
PANEL_SIZE = (0.65, 0.85)  # range of the width and height of a panel, relative to the width and height of the side
PANEL_HALF_THICKNESS = 0.02
FRAME_WIDTH = 0.05  # width of the frame around a panel, in the body's colour


def make_marked_object(family: str, rng: np.random.Generator, index: int = -1) -> Asset:
    """Build a car or a chair whose four vertical sides differ: each has a panel and a symbol in random colours.

    ``family`` is "cars" or "chairs"; other values raise KeyError. ``index`` is the number of the object, which is
    only stored in the result; -1: the object has no number.
    """
    noun = NOUNS[FAMILIES[family]]
    main = sample_colour(rng)
    builder = Builder(rng, colour_value(main, rng))
    noun.recipe(builder)
    if family == "chairs":
        _chest(builder)
    bare = tuple(builder.solids)  # so that no side depends on another's marks
    box = bounds(bare)
    for side in SIDES:
        _mark(builder, rng, bare, box, side, [name for name in COLOURS if name != main])
    solids = builder.finish(rng.uniform(0.9, 1.0))
    spec = Spec(noun.word, main)
    return Asset(solids, caption(spec), family=noun.family, front=noun.front, index=index, **vars(spec))


def _chest(b: Builder) -> None:
    # a box under the seat, so that marks on the far side are not visible between the legs
    boards = [solid for solid in b.solids if solid.kind == BOX and solid.label == "body"]
    seat = max(boards, key=lambda board: board.matrix[0, 0] * board.matrix[1, 1])
    wide, top = seat.matrix[0, 0] * 0.94, seat.centre[2]
    b.box((0, 0, 0.55 * top), (wide, wide, 0.45 * top), b.shade(b.colour, 0.85), "chest")


def surface(solids: Sequence[Primitive], box: np.ndarray, side: str, across: float, up: float) -> np.ndarray | None:
    """Return the point (3,) where a ray through a vertical side of a bounding box first meets one of the `solids`.

    `box` (2, 3) has the lower and the upper corner. `side` is "front" (+x), "left" (+y), "back" or "right". The ray is
    perpendicular to this side, and ends at the parallel plane through the centre of the box. It starts at the relative
    coordinates `across` (horizontal) and `up` (vertical) of the side, both in [-1, 1], with 0 in the middle. `across`
    grows to the right for a viewer who faces the side. The result is None if the ray meets no solid.
    """
    centre, half = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    normal = np.array([*SIDES[side][0], 0.0])
    tangent = np.array([-normal[1], normal[0], 0.0])
    start = centre + (tangent * across + np.array([0, 0, up]) + 1.02 * normal) * half
    line = start - np.linspace(0, 1.0, 120)[:, None] * (np.abs(normal) @ half) * normal
    hits = np.flatnonzero(inside(solids, line))
    return line[hits[0]] if len(hits) else None


def _mark(
    b: Builder, rng: np.random.Generator, bare: Sequence[Primitive], box: np.ndarray, side: str, names: list[str]
) -> None:
    # adds a panel with a symbol, and perhaps an attachment; names: possible colours; bare: the solids without marks
    flat, turn = SIDES[side]
    normal = np.array([*flat, 0.0])

    def sample_point(width: float, low: float, high: float) -> np.ndarray:
        while True:
            point = surface(bare, box, side, rng.uniform(-width, width), rng.uniform(low, high))
            if point is not None:
                return point

    panel, symbol, attachment = (colour_value(names[int(k)], rng) for k in rng.permutation(len(names))[:3])
    half = (box[1] - box[0]) / 2
    up, across = half[2], half @ np.array([abs(flat[1]), abs(flat[0]), 0.0])
    # before the rotation, the panel's first axis points up (front and back) or across (left and right)
    wide, high = across * rng.uniform(*PANEL_SIZE), up * rng.uniform(*PANEL_SIZE)
    at = sample_point(0.1, -0.2, 0.0)
    size, thick = (high, wide) if flat[0] else (wide, high), PANEL_HALF_THICKNESS
    frame = (size[0] + FRAME_WIDTH, size[1] + FRAME_WIDTH, 2 * thick)
    b.add(BOX, at - 1.1 * thick * normal, frame, None, f"{side} frame", turn)  # only the panel's face stays visible
    b.add(BOX, at, (*size, thick), panel, f"{side} panel", turn)
    _symbol(b, b.pick(*SYMBOLS), at + normal * thick, 0.6 * min(wide, high), symbol, f"{side} symbol", turn)
    if rng.random() < ATTACHMENT_PROBABILITY:
        point, width = sample_point(0.8, -0.55, 0.25), rng.uniform(0.07, 0.11)
        _attach(b, b.pick(*ATTACHMENTS), point, normal, width, attachment, f"{side} piece", turn)


def _symbol(b: Builder, kind: str, at: np.ndarray, size: float, colour: np.ndarray, label: str, turn) -> None:
    if kind == "disc":
        b.cylinder(at, size, 0.02, colour, label, turn)
    elif kind == "ring":
        b.torus(at, size, 0.3 * size, colour, label, turn)
    elif kind == "cone":
        b.cone(at, size, 0.05, colour, label, turn)
    else:
        b.box(at, (size, 0.3 * size, 0.02), colour, label, turn)
        if kind == "cross":
            b.box(at, (0.3 * size, size, 0.02), colour, label, turn)


def _attach(
    b: Builder, kind: str, at: np.ndarray, normal: np.ndarray, size: float, colour: np.ndarray, label: str, turn
) -> None:
    if kind == "ball":
        b.sphere(at + normal * size * 0.7, size, colour, label)
    elif kind == "horn":
        b.cone(at + normal * 1.6 * size, size, 1.6 * size, colour, label, turn)
    elif kind == "rod":
        b.limb(at, at + normal * 3 * size, 0.5 * size, colour, label)
    else:
        b.box(at + normal * size * 0.7, size, colour, label)


WHITE, SUPERSAMPLE = 1.0, 3
TEST_VIEWS = 251  # spiral views per validation or test scene
FOV, RELATIVE_DISTANCE = 40.0, 0.95
"""Field of view in degrees, and camera distance in units of 1 / tan(fov / 2), at which an object fills the image."""
TRAIN_ELEVATION, TEST_ELEVATION, TURNS = (-10.0, 80.0), (0.0, 45.0), 3.2
"""Elevation range of random views, first and last elevation of the spiral, and number of turns of the spiral.

The elevations are in degrees."""
SPLITS = ("train", "val", "test")  # names of the splits, and of the config fields with their numbers of scenes


class Job(NamedTuple):
    """Scene (views of one object) to make. ``family`` is "cars" or "chairs", ``split`` is "train", "val" or "test".

    ``number`` is the number of the scene among those of the same family and split, from 0.
    """

    family: str
    split: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.family}-{self.split}-{self.number:05d}"

    def rng(self, seed: int, purpose: str) -> np.random.Generator:
        return numpy_generator(seed, self.number, f"{self.family} {self.split} {purpose}")


def make(task: Task) -> None:
    config, every = task.config, list(jobs(task.config))
    with task.track_progress("scenes", len(every)) as on_step:
        for job in every:
            on_step()
            target = task.folder / f"{job.family}_{job.split}" / job.name
            if not target.is_dir():
                write_instance(target, scene(config, job))
    folders = dict.fromkeys(f"{job.family}_{job.split}" for job in every)
    task.summarise(scenes=len(every), files=folders)


run = partial(run_task, make, rerun_finished=True)


def jobs(config: MakeSRNToyboxConfig) -> Iterator[Job]:
    for family in config.families:
        for split in SPLITS:
            yield from (Job(family, split, index) for index in range(getattr(config, split)))


def scene(config: MakeSRNToyboxConfig, job: Job) -> Views:
    asset, at = make_marked_object(job.family, job.rng(config.seed, "object"), job.number), viewpoints(config, job)
    fov = np.full(len(at), np.deg2rad(FOV), np.float32)
    rendered = render([asset], np.zeros(len(at), np.int64), at.c2w.numpy(), fov, at.height, WHITE, SUPERSAMPLE)
    return Views(torch.from_numpy(rendered.rgb), at)


def viewpoints(config: MakeSRNToyboxConfig, job: Job) -> Cameras:
    """Return the cameras of a scene, which look at the origin from one common distance.

    In the split "train" the cameras are random, uniform on the part of a sphere with elevations of -10 to 80 degrees.
    In "val" and "test" all scenes have the same 251 cameras, on a spiral around the z axis.
    """
    if job.split == "train":
        rng, n = job.rng(config.seed, "cameras"), config.train_views
        low, high = np.sin(np.deg2rad(TRAIN_ELEVATION))
        elevation, azimuth = np.arcsin(rng.uniform(low, high, n)), rng.uniform(0, 2 * np.pi, n)
    else:
        t = np.linspace(0, 1, TEST_VIEWS)
        elevation = np.deg2rad(TEST_ELEVATION[0] + t * np.ptp(TEST_ELEVATION))
        azimuth = 2 * np.pi * TURNS * t
    tan_half = np.tan(np.deg2rad(FOV) / 2)
    el, az = (torch.from_numpy(np.asarray(angle, np.float32)) for angle in (elevation, azimuth))
    c2w = orbit_c2w(el, az, torch.full_like(az, RELATIVE_DISTANCE / float(tan_half)))
    focal = torch.full((len(c2w),), config.size / 2 / float(tan_half))
    return Cameras(c2w, Projection(square_pixels(focal, config.size, config.size)), config.size, config.size)


class ToyboxScenes:
    """Source of scenes (`data.srn.pairs.PairSource`): rendered cars and chairs with marks on their four sides.

    A scene has views of one object; `scene(index)` returns them. Models that generate new views from an input view
    train on pairs of views of a scene. A mark is a panel with a symbol; the four marks of an object differ. The task
    `make-srn-toybox` writes the same training scenes to disk if it has the same seed, image size, families (cars,
    chairs), and numbers of scenes and views.
    """

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
