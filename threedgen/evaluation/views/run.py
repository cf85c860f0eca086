"""Carries out the task "evaluate-views": draws scenes with and without attention between their views, or reads what
somebody has drawn, and compares them with true views.

RUN/views/ROW/00003.safetensors   what was drawn of scene 3, kept: a killed or extended run goes on with what is missing
RUN/report.json, report.md        figures with intervals
RUN/sheet.png                     true and drawn views of the first scenes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from torch import Tensor

from threedgen.config import ConfigError, registry
from threedgen.data.scene_views import SceneSource, SceneViews
from threedgen.evaluation.tables import write_strips
from threedgen.geometry.images import enlarge_small
from threedgen.geometry.views import Views, resize
from threedgen.run.folder import user_path
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.train.task import Task, run_task

from .drawing import ATTENTION, BASE, Drawing, size_of
from .folder import DrawnScenes
from .measure import Meter, bytes_of, overlap
from .options import EvaluateViewsConfig
from .report import FOLDER, OTHER, ROWS, TRUTH, report

SHEET_WIDTH = 128
"""Pixels of a view on the sheet."""
Shown = tuple[str, int, SceneViews, Tensor | None]
"""A row, the number of a scene, its views, and the picture that was given for the first of them."""


def evaluate(task: Task) -> None:
    """Draws, measures, reports. Raises ConfigError before any drawing for what cannot be drawn or measured; Stopped
    after Ctrl-C."""
    evaluation = Evaluation(task)
    config, meter, strips, labels = evaluation.config, Meter(task.config), [], []
    with Interrupts() as interrupts, Count("views", evaluation.total, task.quiet) as count:
        for row, number, scene, given in evaluation.shown(interrupts, count):
            meter.add(row, scene, given)
            if number < config.sheet and row != OTHER and not (row == TRUTH and evaluation.drawn):
                strips.append(strip(scene.views.images))
                labels.append(f"{number}, {ROWS[row]}: {scene.captions[0]}".rstrip(": "))
            count.add(1)
            interrupts.raise_if_stopped()
    write_strips(task.folder / "sheet.png", strips, labels)
    report(task, meter, evaluation.about())


class Evaluation:
    """The true scenes of a run, and who draws them, or what was ``drawn``. Raises ConfigError."""

    def __init__(self, task: Task) -> None:
        self.config: EvaluateViewsConfig = task.config
        c = self.config
        self.source: SceneSource = registry.build("scene-source", c.scenes, c.seed, "test")
        if not len(self.source):
            raise ConfigError(f"{self.source.describe()}: there are none to compare with", "scenes")
        overlapping(self.source, "scenes")
        self.count = min(c.count, len(self.source))
        self.first = self.source.scene(0)
        if overlap(c, self.first) is None:
            raise ConfigError(f"{self.source.describe()}: no view overlaps the next one", "scenes")
        self.drawn: DrawnScenes | None = None
        self.drawing: Drawing | None = None
        if c.views is None:
            self.drawing = Drawing(task, self.source.describe(), self.first)
        else:
            self.drawn = DrawnScenes(user_path(c.views, "views"), self.first.depth is not None, c.clip is not None)
            overlapping(self.drawn, "views")

    @property
    def others(self) -> bool:
        """Are there as many true scenes again?"""
        return 2 * self.count <= len(self.source)

    @property
    def total(self) -> int:
        return (1 + self.others) * self.count + (2 * self.count if self.drawn is None else len(self.drawn))

    def shown(self, interrupts: Interrupts, count: Count) -> Iterator[Shown]:
        """Yields the views that are measured, scene by scene; what lacks is drawn meanwhile."""
        draw, drawn = self.drawing, self.drawn
        for number in range(self.count):
            scene = self.true(number)
            given = scene.views.images[0] if draw and draw.given else None
            yield TRUTH, number, scene, given
            if draw is not None:
                for row in (ATTENTION, BASE):
                    count.note(f"scene {number}, {ROWS[row]}")
                    yield row, number, with_images(scene, draw(row, number, scene, interrupts.raise_if_stopped)), given
            if self.others:
                yield OTHER, number, self.true(self.count + number), None
        if drawn is not None:
            yield from ((FOLDER, number, drawn.scene(number), None) for number in range(len(drawn)))

    def true(self, number: int) -> SceneViews:
        """Makes a scene, its views as exact as files hold them."""
        scene = self.source.scene(number)
        return with_images(scene, bytes_of(scene.views.images))

    def about(self) -> dict[str, object]:
        """Tells what report.json says first."""
        c = self.config
        who = {"drawn": self.drawn.describe()} if self.drawn else {
            "prior": c.prior.weights, "blocks": c.prior.blocks, "steps": c.steps, "guidance_scale": c.guidance_scale,
            "given": bool(self.drawing and self.drawing.given), "mask": c.mask,
        }  # fmt: skip
        return {"scenes_of": self.source.describe(), "count": self.count, "size": size_of(self.first), **who}


def overlapping(source: SceneSource, key: str) -> None:
    """Raises ConfigError for scenes of one view."""
    if source.n_view < 2:
        raise ConfigError(f"{source.describe()}: a scene has {source.n_view} view; it takes 2 or more to overlap", key)


def with_images(scene: SceneViews, images: Tensor) -> SceneViews:
    """Puts other pictures (V,H,W,3), uint8, in the places of a scene's own."""
    return replace(scene, views=Views(images.float() / 255, scene.views.cameras))


def strip(images: Tensor) -> object:
    """Brings views (V,H,W,3) to the width in which the sheet shows them."""
    height, width = images.shape[1:3]
    if width > SHEET_WIDTH:
        images = resize(images, round(height * SHEET_WIDTH / width), SHEET_WIDTH)
    return enlarge_small(images)


run = partial(run_task, evaluate, result="report.md", again=True)
"""Evaluates, or goes on evaluating, views."""
