"""Task "consistency": sample or read views of many scenes, fit a field to each, and compare it with held-out views.

RUN/views/SAMPLER/SCENE.safetensors   samples of one sampler; a killed run resumes after its last scene
RUN/scores/                           metrics, held-out views and renders of each scene (`fits.py`)
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from threedgen.config import ConfigError, config_hash, registry
from threedgen.evaluation.features import FeatureNetwork
from threedgen.evaluation.metrics.distributions import distance_functions
from threedgen.evaluation.metrics.figures import Json, jackknife_estimate, mean_estimate, median, paired_differences
from threedgen.evaluation.report import figure_table, write_report, write_strips
from threedgen.evaluation.runner import Evaluation, evaluation_task, read_views, write_views
from threedgen.geometry.images import enlarge_small, to_uint8
from threedgen.geometry.views import NovelViewSampler, Request, Views
from threedgen.run.arrays import evenly_spaced
from threedgen.run.cache import input_digest
from threedgen.run.seeding import numpy_generator
from threedgen.run.threads import set_threads
from threedgen.train.task import Task

from .fits import Job, held_out_images, stored_or_scored
from .options import ORIGINAL, ConsistencyConfig
from .scenes import HELD_OUT, Scene, camera_warnings, fit_to, held_out_views
from .tsed import MAX_ERROR, MIN_MATCHES

logger = logging.getLogger(__name__)

FIGURES = {
    "psnr": "PSNR, dB", "mean_psnr": "PSNR of the mean image", "ssim": "SSIM", "tsed": "TSED",
    "true_psnr": "PSNR to the true views", "true_ssim": "SSIM to the true views",
}  # fmt: skip
COUNTS = {"scenes": "scenes", "views": "views per scene", "held_out": "held out"}
RESAMPLES = 2000
KID_SUBSET = 1000
MANY_VIEWS = 16  # number of views per scene, around an object, from which a field can be fitted well
SHEET_SCENES = 8
ERROR_GAIN = 3.0  # factor by which absolute differences of pixels are amplified on the contact sheet
STRIP_VIEWS = 10  # maximum number of views per cell of views.png: condition views, then evenly spaced target views


class Consistency(Evaluation[ConsistencyConfig, Job, Json]):
    """Task "consistency": evaluate the 3D consistency of the views of each sampler and of the original views.

    For each scene and sampler, a neural field is fitted to most views, and its renders are compared with the held-out
    views. An item (`Job`), the argument of `measure`, has the views of one scene by one sampler; the result is a dict
    of metrics. The attribute ``strips`` has the cells of the contact sheet views.png: it maps the name of a scene to a
    list of (label, images (V, H, W, 3), uint8).
    """

    stage = "fields"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        config, self.workers = self.config, self.config.workers
        self.features: FeatureNetwork | None = None
        if config.features:
            self.features = registry.build("features", config.features.features())
        self.samplers: dict[str, NovelViewSampler] = {
            row: registry.build("sampler", options) for row, options in config.named_samplers.items()
        }
        first = next(iter(self.samplers.values()))
        self.scenes: list[Scene] = registry.build("scenes", config.scenes, first, config.seed)
        if not self.scenes:
            raise ConfigError("there are none", "scenes")
        for row, sampler in self.samplers.items():
            self.check(row, sampler)
        self.held_out = {scene.name: held_out_views(scene, config.seed) for scene in self.scenes}
        self.notes = config.left_out()
        for note in self.notes:
            logger.warning("%s", note)
        self.notes += [note for scene in self.scenes for note in camera_warnings(scene)]
        if few := [scene.name for scene in self.scenes if len(scene.cameras) < MANY_VIEWS]:
            self.notes.append(
                f"scenes with fewer than {MANY_VIEWS} views: {len(few)}, such as {few[0]}. So few views determine the "
                "field poorly, and any sampler scores low. Compare only scores of the same cameras, such as true views."
            )
        self.strips: dict[str, list[tuple[str, np.ndarray]]] = {}
        self.work: Callable[[Job], Json] = partial(
            stored_or_scored, threads=max(1, set_threads(config.threads) // self.workers)
        )
        self.items = self.jobs()
        self.total = sum(len(self.samplers) + (scene.original is not None) for scene in self.scenes)

    def check(self, sampler_name: str, sampler: NovelViewSampler) -> None:
        needs = {"needs_text": ("text", "a prompt", "toybox"), "needs_condition": ("condition", "an image", "posed")}
        for scene in self.scenes:
            for need, (attribute, name, other) in needs.items():
                if getattr(sampler, need, False) and not getattr(scene, attribute):
                    raise ConfigError(
                        f"{sampler_name} needs {name}, which the scenes {self.config.scenes.name!r} do not have. "
                        f"Use scenes.name={other}.",
                        "sampler",
                    )
            if getattr(sampler, "on_disk", False):
                sampler.indices(scene.request(self.config.seed, with_images=False))  # type: ignore[attr-defined]

    def jobs(self) -> Iterator[Job]:
        """Yield one job (views to score) per scene and sampler, and one for the original views of each scene, if any.

        Views that are not in the run folder yet are sampled first.
        """
        size = self.config.batch
        for batch in (self.scenes[start : start + size] for start in range(0, len(self.scenes), size)):
            true = [
                scene.original and Views(fit_to(scene, scene.original(range(len(scene.cameras))).images), scene.cameras)
                for scene in batch
            ]
            for row in (*self.samplers, ORIGINAL):
                is_sampled = row in self.samplers
                rows = self.sample(row, batch) if is_sampled else true
                for scene, views, truth in zip(batch, rows, true, strict=True):
                    if self.interrupts.stop:
                        return
                    if views is None:
                        continue
                    if scene.name in self.strips or len(self.strips) < SHEET_SCENES:
                        self.strips.setdefault(scene.name, []).append((f"{scene.name} {row}", strip(scene, views)))
                    compared = truth if is_sampled and scene.condition else None
                    true_images = None if compared is None else to_uint8(compared.images)
                    images, held = to_uint8(views.images), self.held_out[scene.name]
                    compared_views = (true_images, scene.targets, scene.bounds)
                    yield Job(self.config, scene.name, row, images, scene.cameras, held, *compared_views)

    def sample(self, sampler_name: str, batch: Sequence[Scene]) -> list[Views]:
        """Return all views of each scene in ``batch``: the given condition views, and target views by one sampler.

        Target views are read from the run folder if they are there, and sampled otherwise. ``sampler_name`` is the
        name of the sampler in the config.
        """
        sampler, requests = self.samplers[sampler_name], [scene.request(self.config.seed) for scene in batch]
        paths = [self.folder / "views" / sampler_name / f"{scene.name}.safetensors" for scene in batch]
        determined_by = {"sampler": sampler.fingerprint(), "seed": str(self.config.seed)}
        metadata = [
            determined_by | {"views": " ".join(map(str, request.numbers)), "inputs": request_digest(request)}
            for request in requests
        ]
        kept = [read_views(path, expected) for path, expected in zip(paths, metadata, strict=True)]
        images = {k: torch.from_numpy(views).float() / 255 for k, views in enumerate(kept) if views is not None}
        if missing := [k for k in range(len(batch)) if k not in images]:
            self.progress.note(f"{sampler_name} samples {' '.join(batch[k].name for k in missing)}")
            for k, views in zip(missing, sampler([requests[k] for k in missing]), strict=True):
                images[k] = fit_to(batch[k], views)
                if not getattr(sampler, "on_disk", False):
                    write_views(paths[k], images[k], metadata[k])
        return [scene.all_views(requests[k], images[k]) for k, scene in enumerate(batch)]

    def measure(self, item: Job) -> Json:
        return self.work(item)

    def report(self, rows: list[Json]) -> None:
        config, order = self.config, [*self.samplers, ORIGINAL]
        scenes = [scene.name for scene in self.scenes]
        rows.sort(key=lambda score: (scenes.index(score["scene"]), order.index(score["row"])))
        of = {row: [score for score in rows if score["row"] == row] for row in order}
        of = {row: mine for row, mine in of.items() if mine}
        distances = feature_distances(self.features, self.folder / "scores", of) if self.features else {}
        summaries = {row: self.summary(mine) | self.counts(mine) | distances.get(row, {}) for row, mine in of.items()}
        first, *others = self.samplers
        differences: dict[str, Json] = {}
        for row in others:
            less = paired_differences(of[first], of[row], FIGURES)
            differences[row] = self.summary(less)
            for key in FIGURES:
                differences[row][key]["won"] = sum((one[key] or 0) > 0 for one in less)
        figures = {
            "samplers": {row: options.name for row, options in config.named_samplers.items()},
            "scenes_of": config.scenes.name,
            "protocol": config.protocol.name,
            "protocol_hash": config_hash(config.protocol)[:16],
            "held_out_share": HELD_OUT,
            "rows": summaries,
            "differences": differences,
            "notes": self.notes,
            "scenes": rows,
        }
        names = {"original data" if row == ORIGINAL else row: summaries.get(row, {}) for row in order}
        parts = [figure_table("views", names, COUNTS | FIGURES | {"fid": "FID", "kid": "KID"})]
        if differences:
            won = {row: less | {"won": less["psnr"]["won"]} for row, less in differences.items()}
            parts.append(figure_table(f"{first} minus", won, {**FIGURES, "won": "scenes with more PSNR"}))
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        text = "\n\n".join(parts)
        self.write_sheets(rows)
        about = f"""Protocol "{config.protocol.name}", settings {config_hash(config.protocol)[:16]}: scores compare only
within one protocol, settings and cameras. In brackets 95 % bootstrap intervals over the scenes. TSED: {MIN_MATCHES}
matches, {MAX_ERROR:g} pixels. Definitions: docs/consistency.md."""
        whole = f"# 3D consistency\n\n{text}\n\n{about}\n"
        write_report(self.task, "consistency", figures, whole, text, summary={"scenes": len(scenes)})

    def counts(self, scores: Sequence[Json]) -> Json:
        """Return the median numbers of all views and of held-out views of a scene."""
        views = {scene.name: len(scene.cameras) for scene in self.scenes}
        held_out = [len(score["held_out"]) for score in scores]
        return {
            "views": round(median([views[score["scene"]] for score in scores]) or 0),
            "held_out": round(median(held_out) or 0),
        }

    def summary(self, scores: Sequence[Json]) -> Json:
        found: Json = {"scenes": len(scores)}
        for key in FIGURES:
            rng = numpy_generator(self.config.seed, 0, f"bootstrap {key}")
            found[key] = mean_estimate([score[key] for score in scores], rng, RESAMPLES)
        return found

    def write_sheets(self, scores: Sequence[Json]) -> None:
        """Write the contact sheets views.png and sheet.png of the first 8 scenes (`SHEET_SCENES`).

        views.png shows the views of each scene, sampled and original. A cell of sheet.png shows, for a scene and
        sampler, the held-out view with the median PSNR, the render of the neural field that was fitted to the views
        that are not held out, and the amplified difference. ``scores`` has one dict of metrics per scene and sampler
        (`fits.score`).
        """
        labelled = [strip for scene in self.strips.values() for strip in scene]
        labels = [label for label, _ in labelled]
        write_strips(self.folder / "views.png", [enlarge_small(views) for _, views in labelled], labels)
        names = [scene.name for scene in self.scenes[:SHEET_SCENES]]
        strips, labels = [], []
        for score in (score for score in scores if score["scene"] in names):
            each = score["each"]["psnr"]
            middle = int(np.argsort(each)[len(each) // 2])
            held, render = (stack[middle] for stack in held_out_images(self.folder / "scores", score))
            error = np.clip(ERROR_GAIN * np.abs(held.astype(float) - render), 0, 255).astype(np.uint8)
            strips.append(enlarge_small(np.stack([held, render, error])))
            psnr = f"{each[middle]:.1f} dB"
            labels.append(f"{score['scene']} {score['row']}: sample; field, {psnr}; error x {ERROR_GAIN:g}")
        columns = min(2, len({score["row"] for score in scores}))
        write_strips(self.folder / "sheet.png", strips, labels, columns)


def request_digest(request: Request) -> str:
    """Return a hash of the cameras, the prompt and the condition views of a request to a sampler."""
    views = [] if request.condition is None else [request.condition.images]
    cameras = [request.target, *([] if request.condition is None else [request.condition.cameras])]
    return input_digest([*views, *(array for each in cameras for array in (each.c2w, each.K))], request.text)


def feature_distances(features: FeatureNetwork, folder: Path, of: Mapping[str, Sequence[Json]]) -> dict[str, Json]:
    """Compute FID and KID between held-out views and renders from the same cameras, for each sampler.

    For each scene, a neural field was fitted to most of a sampler's views. The renders show this field from the cameras
    of the other views, which were held out. The held-out views of all scenes are compared with all renders.

    Args:
        features: network whose features are compared.
        folder: folder RUN/scores, in which `fits.score` has stored held-out views and renders.
        of: dict from the name of a sampler to the metrics of its scenes, one dict per scene (result of `fits.score`).
            The name "original" stands for the original views. The entries "scene" and "row" of a dict are the names of
            the scene and the sampler, and thus of the stored files.

    Returns:
        Dict from each name in ``of`` to a dict with "fid" and "kid" (not multiplied by 1000), each with a 95 %
        jackknife interval over the scenes, and "pictures", the number of held-out views. Names with fewer than two
        held-out views are left out.
    """
    found: dict[str, Json] = {}
    for row, scores in of.items():
        stacks = [held_out_images(folder, score) for score in scores]
        held, renders = (
            [features(torch.from_numpy(stack)).features for stack in column] for column in zip(*stacks, strict=True)
        )
        if (count := sum(map(len, held))) > 1:
            figures = distance_functions(held, renders, 100, KID_SUBSET)
            # without an interval if the jackknife, which leaves out a scene, would leave one image
            groups = 20 if count - max(map(len, held)) > 1 else 1
            found[row] = {name: jackknife_estimate(figure, len(held), groups) for name, figure in figures.items()}
            found[row]["pictures"] = count
    return found


def strip(scene: Scene, views: Views) -> np.ndarray:
    """Select at most 10 views of a scene for views.png: condition views, then evenly spaced target views.

    ``views`` are all views of ``scene``. Return the images (K, H, W, 3), uint8, of the K selected views.
    """
    targets = scene.targets
    chosen = [targets[k] for k in evenly_spaced(len(targets), STRIP_VIEWS - len(scene.condition))]
    return to_uint8(views.images[[*scene.condition, *chosen]])


FILES = ("sheet.png", "views.png")
run = evaluation_task(Consistency, "consistency.md", FILES)
