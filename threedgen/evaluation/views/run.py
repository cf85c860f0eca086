"""Task "evaluate-views": compare sampled views of scenes with true views.

The views are sampled with and without attention between the views of a scene, or existing views are read from a folder.

RUN/views/ROW/00003.safetensors   samples of scene 3; a killed run, or a run with a larger count, resumes
RUN/report.json, report.md        metrics with intervals
RUN/sheet.png                     true and sampled views of the first scenes
"""

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from threedgen.config import ConfigError, registry
from threedgen.data.scene_views import SceneSource, SceneViews
from threedgen.evaluation.features import CaptionScore, FeatureNetwork, NetworkOutput
from threedgen.evaluation.metrics.figures import Json, mean
from threedgen.evaluation.metrics.overlap import depth_overlap, given_view, panorama_overlap
from threedgen.evaluation.report import write_strips
from threedgen.evaluation.runner import Evaluation, evaluation_task
from threedgen.geometry.images import enlarge_small, to_uint8
from threedgen.geometry.views import Views, resize
from threedgen.geometry.warp import to_opencv
from threedgen.run.arrays import Array
from threedgen.run.folder import user_path
from threedgen.train.task import Task

from .folder import FolderScenes
from .options import EvaluateViewsConfig
from .report import FOLDER, OTHER, ROWS, TRUTH, MeasuredViews, write_views_report
from .sampling import ATTENTION, BASE, SceneSampler, size_of

SHEET_SCENES, SHEET_WIDTH = 8, 128
"""Maximum number of scenes, and maximum width of a view in pixels, on the contact sheet."""


class Item(NamedTuple):
    """One scene of one table row (a key of `report.ROWS`) to measure."""

    row: str
    number: int


class Measurement(NamedTuple):
    """Metrics and network output of an item. ``strip`` has its label and images (V, H, W, 3) for the sheet."""

    item: Item
    figures: dict[str, float | None]
    output: NetworkOutput
    strip: tuple[str, Array] | None


class EvaluatedViews(Evaluation[EvaluateViewsConfig, Item, Measurement]):
    """Evaluation of true views, samples with and without attention, other true scenes, or views of a folder."""

    stage = "views"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        c = self.config
        self.source: SceneSource = registry.build("scene-source", c.scenes, c.seed, "test")
        if not len(self.source):
            raise ConfigError(f"{self.source.describe()}: there are none to compare with", "scenes")
        require_overlap(self.source, "scenes")
        self.count = min(c.count, len(self.source))
        self.first = self.source.scene(0)
        if overlap(c, self.first) is None:
            raise ConfigError(f"{self.source.describe()}: no view overlaps the next one", "scenes")
        self.existing: FolderScenes | None = None
        self.sampler: SceneSampler | None = None
        if c.views is None:
            self.sampler = SceneSampler(task, self.source.describe(), self.first)
        else:
            self.existing = FolderScenes(user_path(c.views, "views"), self.first.depth is not None, c.clip is not None)
            require_overlap(self.existing, "views")
        self.features: FeatureNetwork = registry.build("features", c.features)
        self.caption_score = CaptionScore(c.clip) if c.clip else None
        self.true_scene = lru_cache(1)(self._true_scene)
        rows = [TRUTH, *(() if self.sampler is None else (ATTENTION, BASE))]
        rows += [OTHER] if 2 * self.count <= len(self.source) else []
        items = [Item(row, number) for number in range(self.count) for row in rows]
        self.items = items + [Item(FOLDER, number) for number in range(len(self.existing or ()))]

    def scene(self, item: Item) -> SceneViews:
        """Return the views of an item. Samples of an earlier run are read from the run folder."""
        if item.row == FOLDER and self.existing is not None:
            return self.existing.scene(item.number)
        if item.row == OTHER:
            return self._true_scene(self.count + item.number)
        scene = self.true_scene(item.number)
        if item.row == TRUTH or self.sampler is None:
            return scene
        self.progress.note(f"scene {item.number}, {ROWS[item.row]}")
        views = self.sampler(item.row, item.number, scene, self.interrupts.raise_if_stopped)
        return with_images(scene, views)

    def _true_scene(self, number: int) -> SceneViews:
        """Return a true scene with its images rounded to the 256 values of uint8."""
        scene = self.source.scene(number)
        return with_images(scene, rounded_images(scene.views.images))

    def measure(self, item: Item) -> Measurement:
        scene, c = self.scene(item), self.config
        figures: dict[str, float | None] = {"psnr": overlap(c, scene)}
        if self.sampler is not None and self.sampler.given and item.row in (TRUTH, ATTENTION, BASE):
            K, c2w = to_opencv(scene.views.cameras)
            given = self.true_scene(item.number).views.images[0]
            figures |= given_view(scene.views.images, given, K, c2w[:, :3, :3])
        images = rounded_images(scene.views.images)
        if self.caption_score is not None:
            figures["clip"] = self.caption_score(images, scene.captions)
        shown = item.number < SHEET_SCENES and item.row != OTHER and not (item.row == TRUTH and self.existing)
        label = f"{item.number}, {ROWS[item.row]}: {scene.captions[0]}".rstrip(": ")
        return Measurement(item, figures, self.features(images), (label, strip(scene.views.images)) if shown else None)

    def report(self, rows: list[Measurement]) -> None:
        strips = dict(row.strip for row in rows if row.strip is not None)
        write_strips(self.folder / "sheet.png", strips.values(), list(strips))
        measured: dict[str, MeasuredViews] = {}
        for row in rows:
            views = measured.setdefault(row.item.row, MeasuredViews())
            views.figures.append(row.figures)
            views.outputs.append(row.output)
        write_views_report(self.task, measured, self.features, self.about())

    def about(self) -> Json:
        """Return the first entries of report.json: scenes, size, and options of the samples."""
        c, about = self.config, Json(scenes_of=self.source.describe(), count=self.count, size=size_of(self.first))
        if self.existing is not None:
            return about | {"drawn": self.existing.describe()}
        return about | {
            "prior": c.prior.weights, "blocks": c.prior.blocks, "steps": c.steps, "guidance_scale": c.guidance_scale,
            "given": bool(self.sampler and self.sampler.given), "mask": c.mask,
        }  # fmt: skip


def overlap(config: EvaluateViewsConfig, scene: SceneViews) -> float | None:
    """Return the mean overlap PSNR in dB of neighbouring views of a panorama, or of consecutive views of a path."""
    views = scene.views
    if scene.depth is not None:
        return mean(depth_overlap(views.images, scene.depth, *to_opencv(views.cameras)))
    views = views if config.overlap_size is None else views.resized(config.overlap_size)
    K, c2w = to_opencv(views.cameras)
    return mean(panorama_overlap(views.images, K, c2w[:, :3, :3]))


def require_overlap(source: SceneSource, key: str) -> None:
    """Raise ConfigError for ``key`` if the scenes of a source have only one view."""
    if source.n_view < 2:
        raise ConfigError(f"{source.describe()}: a scene needs 2 views or more to overlap: {source.n_view}", key)


def rounded_images(images: Tensor) -> Tensor:
    """Convert images (V, H, W, 3) from floats in [0, 1] to uint8, rounded."""
    return torch.from_numpy(to_uint8(images))


def with_images(scene: SceneViews, images: Tensor) -> SceneViews:
    """Return a copy of a scene with other images (V, H, W, 3), uint8."""
    return replace(scene, views=Views(images.float() / 255, scene.views.cameras))


def strip(images: Tensor) -> Array:
    """Resize images (V, H, W, 3) in [0, 1] for the contact sheet."""
    height, width = images.shape[1:3]
    if width > SHEET_WIDTH:
        images = resize(images, round(height * SHEET_WIDTH / width), SHEET_WIDTH)
    return enlarge_small(images)


run = evaluation_task(EvaluatedViews)
