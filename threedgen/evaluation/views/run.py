"""Task "evaluate-views": compare sampled or existing views of scenes with true views.

RUN/views/KIND/00003.safetensors   samples of scene 3; KIND: "attention" between views, or "base" without it
RUN/report.json, report.md        metrics with intervals, differences, and the metrics of each scene
RUN/sheet.png                     true and sampled views of the first scenes
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from threedgen.config import ConfigError, registry
from threedgen.data.scene_views import SceneSource, SceneViews
from threedgen.evaluation.features import FeatureNetwork, NetworkOutput
from threedgen.evaluation.metrics import figures as stats
from threedgen.evaluation.metrics.distributions import distance_functions, inception_score
from threedgen.evaluation.metrics.overlap import depth_overlap, given_view, overlap_ratio, panorama_overlap
from threedgen.evaluation.report import figure_table, rounded, write_report, write_strips
from threedgen.evaluation.runner import Evaluation, evaluation_task
from threedgen.geometry.images import enlarge_small, to_uint8
from threedgen.geometry.views import Views, resize
from threedgen.geometry.warp import to_opencv
from threedgen.run.arrays import Array
from threedgen.run.folder import user_path
from threedgen.train.task import Task

from .options import EvaluateViewsConfig
from .scenes import ATTENTION, BASE, FolderScenes, SceneSampler, size_of

TRUTH, OTHER, FOLDER = "truth", "other_truth", "views"
KINDS = {
    TRUTH: "the truth",
    ATTENTION: "with attention between views",
    BASE: "the same base without it",
    FOLDER: "views of the folder",
    OTHER: "other true scenes",
}
GIVEN = {"given": "view 0 to the given image", "beside_given": "the given image to the next views"}
MEANS = {"psnr": "overlap PSNR, dB"} | GIVEN
FIGURES = {
    "psnr": MEANS["psnr"], "ratio": "of the truth's", "fid": "FID", "kid": "KID", "is": "Inception score",
}  # fmt: skip
SPLITS, KID_SUBSET = 10, 5000
"""Number of parts into which images are divided for the Inception score, and maximum number of images for KID, which
uses one subset of the images."""
SHEET_SCENES, SHEET_WIDTH = 8, 128
"""Maximum number of scenes, and maximum width of a view in pixels, on the contact sheet."""
Indices = NDArray[np.intp]


class Item(NamedTuple):
    """Views to measure: the views of one kind of one scene.

    Attributes:
        kind: "truth" (true views), "attention" (sampled by the model, with attention between views), "base" (sampled by
            it without this attention), "views" (existing views of a folder), or "other_truth" (true views of scenes
            that the kind "truth" does not include, for comparison).
        number: index of the scene, from 0. For "truth", "attention" and "base", equal numbers are the same scene. The
            scenes of the kinds "views" and "other_truth" are counted separately.
    """

    kind: str
    number: int


class Measurement(NamedTuple):
    """Measured metrics and features of the V views of one scene.

    Attributes:
        item: kind of the views, and index of the scene. The kinds are "truth", "attention" and "base" (samples with and
            without attention between views), "views" (of a folder) and "other_truth" (true views of other scenes).
        figures: dict from the name of a metric to its value; None: undefined. "psnr" is the mean overlap PSNR in dB: it
            compares each view with the next view, warped into it, where the two overlap.
        output: features (V, D) and class logits (V, K) of the views, for FID, KID and Inception score.
        strip: cell of the contact sheet: a label and images (V, H, W, 3), uint8. None: the item is not on the sheet.
    """

    item: Item
    figures: dict[str, float | None]
    output: NetworkOutput
    strip: tuple[str, Array] | None


class EvaluatedViews(Evaluation[EvaluateViewsConfig, Item, Measurement]):
    """Task "evaluate-views": measure how consistent the views of a scene are, and how similar they are to true views.

    Metrics are the PSNR between neighbouring views where they overlap, the Inception score, and FID and KID to true
    views. The measured views are samples with and without attention between views, or existing views of a folder. True
    views of the same scenes and, if there are enough, of other scenes are measured too: they show which values real
    views reach. An item, the argument of `measure`, is a kind of views and the index of a scene.
    """

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
        if overlap(self.first) is None:
            raise ConfigError(f"{self.source.describe()}: no view overlaps the next one", "scenes")
        self.existing: FolderScenes | None = None
        self.sampler: SceneSampler | None = None
        if c.views is None:
            self.sampler = SceneSampler(task, self.source.describe(), self.first)
        else:
            self.existing = FolderScenes(user_path(c.views, "views"), self.first.depth is not None)
            require_overlap(self.existing, "views")
        self.features: FeatureNetwork = registry.build("features", c.features)
        self.true_scene = lru_cache(1)(self._true_scene)
        kinds = [TRUTH, *(() if self.sampler is None else (ATTENTION, BASE))]
        kinds += [OTHER] if 2 * self.count <= len(self.source) else []
        items = [Item(kind, number) for number in range(self.count) for kind in kinds]
        self.items = items + [Item(FOLDER, number) for number in range(len(self.existing or ()))]

    def scene(self, item: Item) -> SceneViews:
        if item.kind == FOLDER and self.existing is not None:
            return self.existing.scene(item.number)
        if item.kind == OTHER:
            return self._true_scene(self.count + item.number)
        scene = self.true_scene(item.number)
        if item.kind == TRUTH or self.sampler is None:
            return scene
        self.progress.note(f"scene {item.number}, {KINDS[item.kind]}")
        views = self.sampler(item.kind, item.number, scene, self.interrupts.raise_if_stopped)
        return with_images(scene, views)

    def _true_scene(self, number: int) -> SceneViews:
        scene = self.source.scene(number)
        return with_images(scene, torch.from_numpy(to_uint8(scene.views.images)))

    def measure(self, item: Item) -> Measurement:
        scene = self.scene(item)
        figures: dict[str, float | None] = {"psnr": overlap(scene)}
        if self.sampler is not None and self.sampler.given and item.kind in (TRUTH, ATTENTION, BASE):
            K, c2w = to_opencv(scene.views.cameras)
            given = self.true_scene(item.number).views.images[0]
            figures |= given_view(scene.views.images, given, K, c2w[:, :3, :3])
        images = torch.from_numpy(to_uint8(scene.views.images))
        shown = item.number < SHEET_SCENES and item.kind != OTHER and not (item.kind == TRUTH and self.existing)
        label = f"{item.number}, {KINDS[item.kind]}: {scene.captions[0]}".rstrip(": ")
        return Measurement(item, figures, self.features(images), (label, strip(scene.views.images)) if shown else None)

    def report(self, rows: list[Measurement]) -> None:
        c, strips = self.config, dict(one.strip for one in rows if one.strip is not None)
        write_strips(self.folder / "sheet.png", strips.values(), list(strips))
        measured = {kind: MeasuredViews([one for one in rows if one.item.kind == kind]) for kind in KINDS}
        measured = {kind: mine for kind, mine in measured.items() if len(mine)}
        truth = measured[TRUTH]
        found = {kind: summary(mine, truth) for kind, mine in measured.items()}
        less = difference(measured[ATTENTION], measured[BASE], truth) if ATTENTION in measured else {}
        lines = {KINDS[kind]: mine for kind, mine in found.items()} | ({"with minus without": less} if less else {})
        tables = [figure_table("views", lines, FIGURES)]
        if "given" in less:
            tables.append(figure_table("views", {name: line for name, line in lines.items() if "given" in line}, GIVEN))
        figures = self.about() | {
            "features": self.features.description,
            "pictures": {kind: mine.images for kind, mine in measured.items()},
            "rows": found,
            "difference": less,
            "scenes": {kind: mine.figures for kind, mine in measured.items()},
        }
        text = "\n\n".join(tables)
        whole = f"""# Views of one scene

{text}

{len(truth)} held-out scenes, {truth.images} true images, seed {c.seed}. In brackets 95 % intervals over the scenes:
bootstrap of means, jackknife of 20 groups of FID, KID and Inception score. Features: {self.features.description}.
With few images FID is too high: compare rows of one table. Definitions: docs/mvdiffusion.md.
"""
        write_report(self.task, "report", rounded(figures), whole, text, summary={"scenes": len(truth)})

    def about(self) -> stats.Json:
        c, about = self.config, stats.Json(scenes_of=self.source.describe(), count=self.count, size=size_of(self.first))
        if self.existing is not None:
            return about | {"drawn": self.existing.describe()}
        return about | {
            "prior": c.prior.weights, "blocks": c.prior.blocks, "steps": c.steps, "guidance_scale": c.guidance_scale,
            "given": bool(self.sampler and self.sampler.given),
        }  # fmt: skip


def overlap(scene: SceneViews) -> float | None:
    """Return the mean overlap PSNR in dB of consecutive views; None if no consecutive views overlap.

    The overlap PSNR compares a view with the next view warped into it, where they overlap. In a panorama (a scene
    without depth), view 0 follows the last view.
    """
    views = scene.views
    K, c2w = to_opencv(views.cameras)
    if scene.depth is not None:
        return stats.mean(depth_overlap(views.images, scene.depth, K, c2w))
    return stats.mean(panorama_overlap(views.images, K, c2w[:, :3, :3]))


def require_overlap(source: SceneSource, key: str) -> None:
    """Raise ConfigError (config key ``key``) if the scenes of ``source`` have fewer than two views, so no overlap."""
    if source.n_view < 2:
        raise ConfigError(f"{source.describe()}: a scene needs 2 views or more to overlap: {source.n_view}", key)


def with_images(scene: SceneViews, images: Tensor) -> SceneViews:
    return replace(scene, views=Views(images.float() / 255, scene.views.cameras))


def strip(images: Tensor) -> Array:
    """Resize images (V, H, W, 3) in [0, 1] for the contact sheet. Return images (V, H', W', 3), uint8.

    Images wider than 128 pixels are shrunk to this width. Narrower images are enlarged by the smallest integer factor
    that makes them at least as wide.
    """
    height, width = images.shape[1:3]
    if width > SHEET_WIDTH:
        images = resize(images, round(height * SHEET_WIDTH / width), SHEET_WIDTH)
    return enlarge_small(images)


class MeasuredViews:
    """Results of all measured scenes for one kind of views, such as true views or samples.

    Attributes:
        figures: one dict per scene, from the name of a metric, such as "psnr", to its value; None: undefined.
        outputs: one `NetworkOutput` per scene: features (V, D) and class logits (V, K) of its V views, for FID, KID and
            Inception score. They are from the network that the option `features` selects, such as Inception-v3.
        images: number of images in all scenes.
    """

    def __init__(self, scenes: Sequence[Measurement]) -> None:
        self.figures = [scene.figures for scene in scenes]
        self.outputs = [scene.output for scene in scenes]
        self.images = sum(len(output.features) for output in self.outputs)

    def __len__(self) -> int:
        return len(self.figures)


def set_figures(measured: MeasuredViews, truth: MeasuredViews) -> dict[str, Callable[[Indices], float]]:
    """Return functions that compute the metrics "fid", "kid" and "is" (Inception score) of the views in ``measured``.

    The argument of a function is the indices of the included scenes. FID and KID compare with the true views of the
    same scenes if ``measured`` has as many scenes as ``truth``, else with all true views. For ``truth`` itself, only
    "is" is returned.
    """

    def inception(scenes: Indices) -> float:
        logits = np.concatenate([measured.outputs[k].logits for k in scenes])
        return inception_score(logits, min(SPLITS, len(logits)))

    if measured is truth:
        return {"is": inception}
    ours, true = ([output.features for output in views.outputs] for views in (measured, truth))
    return {**distance_functions(ours, true, 1, KID_SUBSET), "is": inception}


def summary(measured: MeasuredViews, truth: MeasuredViews) -> stats.Json:
    found: stats.Json = {"scenes": len(measured)} | means(measured.figures)
    ours, true = ([figures["psnr"] for figures in views.figures] for views in (measured, truth))
    found["ratio"] = stats.estimate(overlap_ratio(ours, true), stats.bootstrap_ratio(ours, true))
    for name, figure in set_figures(measured, truth).items():
        found[name] = stats.jackknife_estimate(figure, len(measured))
    return found


def difference(measured: MeasuredViews, other: MeasuredViews, truth: MeasuredViews) -> stats.Json:
    """Compute the differences of the metrics, ``measured`` minus ``other``, for the same scenes, with 95 % intervals.

    ``truth`` has the true views for FID and KID. The result maps the name of a metric, such as "psnr" or "fid", to its
    difference, a dict with "mean", "low" and "high". The dict of "psnr" also has "won", the number of scenes in which
    the PSNR of ``measured`` is higher.
    """
    differences = stats.paired_differences(measured.figures, other.figures, measured.figures[0])
    found: stats.Json = {**means(differences)}
    found["psnr"]["won"] = sum((one["psnr"] or 0) > 0 for one in differences)
    ours, theirs = set_figures(measured, truth), set_figures(other, truth)
    for name in ours:

        def figure(scenes: Indices, name: str = name) -> float:
            return ours[name](scenes) - theirs[name](scenes)

        found[name] = stats.jackknife_estimate(figure, len(measured))
    return found


def means(scenes: list[dict[str, float | None]]) -> dict[str, stats.Estimate]:
    """Average PSNRs in dB over the scenes. Return a dict from the name of a PSNR to its mean with a 95 % interval.

    - "psnr" compares consecutive views where they overlap.
    - "given" compares view 0 with the input image, which the model received as view 0.
    - "beside_given" compares the two neighbours of view 0 with the input image, where they overlap it.

    ``scenes`` has one dict from name to PSNR, or to a difference of PSNRs, per scene. PSNRs that are undefined in all
    scenes are left out.
    """
    found = {name: stats.mean_estimate([one.get(name) for one in scenes]) for name in MEANS}
    return {name: figure for name, figure in found.items() if figure["mean"] is not None}


run = evaluation_task(EvaluatedViews)
