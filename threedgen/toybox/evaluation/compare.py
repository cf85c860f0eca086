"""Task "compare-3d": compare variants of a config, such as representations and losses, on the same held-out prompts.

A variant is the config with some options changed. The variants are compared after equally many training steps and, if
the option `seconds` is set, after an equal training time of the same runs. A generate run makes one 3D object from a
prompt. KEY is a name made of config, prompt, seed and a hash of the run's config.

RUN/runs/KEY/                 generate run of a variant and a prompt; finished runs are not repeated
RUN/measured/KEY-steps.json   measurements of the run's object at the end of the training
RUN/measured/KEY-time.json    measurements of the run's object in its checkpoint after `seconds` of training
RUN/report.json, report.md    metrics with 95 % intervals, and paired differences from the first variant
RUN/steps.png, time.png       a view of each object at the end, and after `seconds` of training; one row per variant
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from threedgen.config import registry
from threedgen.config.plain_file import read_json
from threedgen.evaluation.metrics.distributions import colour_disagreement, foreground_means
from threedgen.evaluation.metrics.figures import Json, mean_estimate, median_estimate, paired_differences, proportion
from threedgen.evaluation.report import figure_table, rounded, write_report, write_strips
from threedgen.evaluation.runner import Evaluation, cached_json, cached_views, evaluation_task
from threedgen.export.renders import field_renderer
from threedgen.export.run_field import field_view, load_field
from threedgen.geometry.images import to_uint8
from threedgen.geometry.rigs import turntable
from threedgen.guidance.matte import Matte
from threedgen.guidance.weights.other_models import MATTE
from threedgen.run.arrays import Array
from threedgen.run.folder import CHECKPOINTS
from threedgen.run.threads import set_threads
from threedgen.systems.batch.jobs import FINISHED, RECORD, Job, make_all
from threedgen.train.checkpoint_file import KEPT, LAST
from threedgen.train.system import SECONDS_KEY
from threedgen.train.task import Stopped, Task

from .fidelity import distances, roughness, surface
from .held_out import held_out_cases
from .judging import Verdict, judge_views
from .options import Compare3DConfig
from .prior_score import chance_distance, foreground_masks
from .probe import Probe

logger = logging.getLogger(__name__)
VIEWS, SIZE = 8, 128  # number of views of an object, and their side in pixels
BACKGROUND = 0.5  # grey behind the objects
SHOWN_VIEW = 1  # index of the view in steps.png and time.png, 45 degrees to the left of the front
BUDGETS = {"steps": LAST, "time": KEPT}
JUDGED = {"noun": "noun", "colour": "colour", "bound": "part in its colour", "one_front": "one front", "order": "sides"}
MEASURED = {
    "roughness": "roughness, degrees",
    "disagreement": "colour difference of views, Lab",
    "step": "steps",
    "seconds": "seconds",
}
HEADS = JUDGED | {"fid": "FID"} | MEASURED


class Row(NamedTuple):
    """Measurements of the object of one variant (config with some options changed) and prompt.

    The object is measured once or twice: at the end of its training and, if the option `seconds` is set, after this
    training time. ``found`` and ``views`` are dicts with an entry "steps" for the end, and an entry "time" for the
    training time.

    Attributes:
        label: label of the variant.
        prompt: prompt of the object.
        found: a dict of measurements per entry. "noun", "colour", "bound" (the prompt's part is present and has its
            colour), "one_front" (exactly one front) and "order" (the views show the sides in the order of the cameras)
            are True if the probe, a classifier of toybox images, finds this; None if it does not apply. "roughness" is
            the mean angle between normals of neighbouring pixels in degrees, None without a surface. "disagreement" is
            the mean Lab distance between the mean colours of two views. "step" and "seconds" are the length of the
            training. If the run made no object, the bools that apply are False and the numbers None.
        views: images (V, H, W, 3), uint8, of the object per entry.
    """

    label: str
    prompt: str
    found: dict[str, Json]
    views: dict[str, Array]


class Comparison(Evaluation[Compare3DConfig, tuple[str, Job], Row]):
    """Evaluation that makes the objects of all variants of a config and compares their measurements.

    A variant is the config with some options changed. Each item, the argument of `measure`, is a pair (label of the
    variant, batch job that makes the object of a prompt). `measure` returns a `Row`, which has the measurements and
    images of this object.
    """

    stage = "measuring"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        config = self.config
        self.items = self.labelled_jobs = config.labelled_jobs()
        self.budgets = [name for name in BUDGETS if name == "steps" or config.seconds is not None]
        self.probe, self.matte = Probe.load(config.probe.weights), Matte.load(MATTE)
        self.cases = {case.caption: case for case in held_out_cases(config.prompts, config.seed, spread=True)}

    def prepare(self) -> None:
        if code := make_all(self.config, [job for _, job in self.labelled_jobs], self.folder / "runs", self.task.quiet):
            raise Stopped(code)
        set_threads(self.config.threads)
        generate: Any = self.labelled_jobs[0][1].config
        table = generate.result.turntable
        self.cameras = turntable(table, VIEWS).with_size(SIZE, SIZE)
        self.azimuth = 2 * np.pi * np.arange(VIEWS) / VIEWS
        self.fov = float(np.deg2rad(table.fov))
        place = (self.config.seed, 2, table, self.azimuth, SIZE)
        self.truth = {caption: case.render_truth(*place) for caption, case in self.cases.items()}
        colours = [self._colours(first.rgb)[0] for first, _ in self.truth.values()]
        self.chance_distance = chance_distance([colour for colour in colours if colour is not None])

    def _colours(self, views: Array) -> list[Array | None]:
        return foreground_means(views, foreground_masks(self.matte, views))

    def measure(self, item: tuple[str, Job]) -> Row:
        label, job = item
        self.progress.note(f"{label}, {job.prompt}")
        folder = self.folder / "runs" / job.key
        record = read_json(folder / RECORD)
        if failed := record.get("state") != FINISHED:
            logger.warning("%s, %s: no object (%s)", label, job.prompt, record.get("reason", "not made"))
        results = {
            budget: self._no_object(job.prompt) if failed else self._measure(job, budget) for budget in self.budgets
        }
        found = {budget: measured for budget, (measured, _) in results.items()}
        return Row(label, job.prompt, found, {budget: views for budget, (_, views) in results.items()})

    def _measure(self, job: Job, budget: str) -> tuple[Json, Array]:
        # measurements and views (V, H, W, 3), uint8, of the object of a run; read from files if these exist already
        folder, key = self.folder / "runs" / job.key, {"run": job.key, "budget": budget}
        path = folder / CHECKPOINTS / BUDGETS[budget]
        path = path if path.is_file() else path.with_name(LAST)
        measured = self.folder / "measured" / f"{job.key}-{budget}"
        views = cached_views(measured.with_suffix(".safetensors"), key, partial(self._views, folder, path))
        figures = partial(self._measurements, folder, path, job.prompt, views)
        return cached_json(measured.with_suffix(".json"), figures, **key), views

    def _views(self, folder: Path, path: Path) -> Array:
        # views (V, H, W, 3) in [0, 1] of the object in a checkpoint, unlit, on a grey background
        config, field, occupancy, _ = load_field(folder, path=path)
        material = registry.build("material", config.material)
        rgb, opacity = field_renderer(field, occupancy, config.march, material=material)(self.cameras)
        image: Array = rgb * opacity[..., None] + BACKGROUND * (1 - opacity[..., None])
        return image

    def _measurements(self, folder: Path, path: Path, prompt: str, views: Array) -> Json:
        # measurements of the object in a checkpoint; views: its images (V, H, W, 3), uint8
        config, field, occupancy, checkpoint = load_field(folder, path=path)
        view = field_view(field, occupancy, config.march, "cpu", material=registry.build("material", config.material))
        found = surface(view, self.cameras.c2w.numpy(), self.fov, SIZE, config.result.mesh_resolution)
        answers = self._judge(prompt, views).answers
        figures: Json = {key: answers.get(key) for key in JUDGED}
        figures |= {
            "roughness": None if found is None else found.roughness,
            "disagreement": colour_disagreement(self._colours(views / np.float32(255)), self.chance_distance),
            "step": int(checkpoint["global_step"]),
            "seconds": checkpoint[SECONDS_KEY]["optimise"],
        }
        return rounded(figures)

    def _judge(self, prompt: str, views: Array) -> Verdict:
        return judge_views(self.probe, views, self.cases[prompt].spec, self.azimuth, vote=True)

    def _no_object(self, prompt: str) -> tuple[Json, Array]:
        views = np.full((VIEWS, SIZE, SIZE, 3), round(255 * BACKGROUND), np.uint8)
        verdict = self._judge(prompt, views).all_wrong()
        return dict.fromkeys(HEADS) | {key: verdict.answers.get(key) for key in JUDGED}, views

    def report(self, rows: list[Row]) -> None:
        labels = list(dict.fromkeys(row.label for row in rows))
        figures: Json = {"prompts": self.config.prompts, "steps": self.config.steps, "seconds": self.config.seconds}
        parts = [
            f"""# Variants of {self.config.config}

{self.config.prompts} held-out prompts, one object each, seed {self.config.seed}; 95 % intervals. {VIEWS} views of each
object are judged by the probe. Differences are from the first variant, mean over prompts."""
        ]
        rows_of = {label: [row for row in rows if row.label == label] for label in labels}
        truth = {"true objects": self.summary(self.budgets[0], self.true_rows())}
        for budget in self.budgets:
            table = {label: self.summary(budget, mine) for label, mine in rows_of.items()}
            first = [row.found[budget] for row in rows_of[labels[0]]]
            changes = {
                label: differences([row.found[budget] for row in mine], first)
                for label, mine in rows_of.items()
                if label != labels[0]
            }
            figures[budget] = {"variants": table, "differences": changes} | truth
            title = (
                f"{self.config.steps} steps" if budget == "steps" else f"{self.config.seconds:g} seconds of training"
            )
            parts += [f"## {title}", figure_table("variant", table | truth, HEADS)]
            if changes:
                parts.append(figure_table(f"difference from {labels[0]}", changes, JUDGED | MEASURED))
            strips = [np.stack([row.views[budget][SHOWN_VIEW] for row in mine]) for mine in rows_of.values()]
            write_strips(self.folder / f"{budget}.png", strips, labels)
        figures["objects"] = [{"variant": row.label, "prompt": row.prompt, **row.found} for row in rows]
        write_report(self.task, "report", rounded(figures), "\n\n".join(parts) + "\n")

    def summary(self, budget: str, rows: Sequence[Row]) -> Json:
        """Return the metrics of one variant, computed from the rows of its objects, as a dict from metric to dict.

        A variant is the config with some options changed. ``budget`` selects when its objects were measured: "steps"
        (at the end of the training) or "time" (after a fixed training time). The metrics are those below. The dict of
        each metric has its 95 % interval under "low" and "high", and further keys:

        - "noun", "colour", "bound" (part in its colour), "one_front", "order" (sides in order): "share", the fraction
          of objects that are right, by the probe (image classifier); "hits", their number; "total", the number of
          judged objects.
        - "disagreement" (Lab distance between the colours of views), "step", "seconds" (length of the training so far):
          "mean", over the objects. The last two are missing for ground-truth objects, which are not trained.
        - "roughness" (mean angle between normals of neighbouring pixels, degrees): "mean", here the median over the
          objects.
        - "fid", only for two or more objects: "mean", the FID to ground-truth views of the prompts.
        """
        found = [row.found[budget] for row in rows]
        table: Json = {key: proportion([one.get(key) for one in found]).plain() for key in JUDGED}
        table["roughness"] = median_estimate([one["roughness"] for one in found])
        table |= {
            key: mean_estimate([one[key] for one in found])
            for key in MEASURED
            if key != "roughness" and key in found[0]
        }
        if len(rows) > 1:
            truth = [to_uint8(self.truth[row.prompt][0].rgb) for row in rows]
            own = [row.views[budget] for row in rows]
            table["fid"] = distances(self.probe, own, truth, truth)["fid"]
        return table

    def true_rows(self) -> list[Row]:
        """Measure a ground-truth object of each prompt like a generated one, but without "step" and "seconds".

        Each prompt has two ground-truth objects. The second one is measured here, and `summary` compares its views with
        those of the first one, as it does for generated objects.
        """
        rows, budget = [], self.budgets[0]
        for prompt, (_, second) in self.truth.items():
            found: Json = {**self._judge(prompt, second.rgb).answers}
            found["roughness"] = roughness(second.normal, second.mask)
            found["disagreement"] = colour_disagreement(self._colours(second.rgb), self.chance_distance)
            rows.append(Row("true objects", prompt, {budget: found}, {budget: to_uint8(second.rgb)}))
        return rows


def differences(ours: Sequence[Json], theirs: Sequence[Json]) -> Json:
    """Return the mean differences of two variants by the name of the measurement, such as "roughness".

    Each value of the result is a dict with "mean", and the 95 % interval "low" and "high". The mean is over prompts, of
    `ours` minus `theirs` for the same prompt. `ours` and `theirs` have the measurements of the two variants, one dict
    per prompt, in the same order of prompts.
    """
    names = [*JUDGED, *MEASURED]
    first, second = ([{name: one.get(name) for name in names} for one in part] for part in (ours, theirs))
    pairs = paired_differences(first, second, names)
    return {name: mean_estimate([pair[name] for pair in pairs]) for name in names}


run: Callable[..., int] = evaluation_task(Comparison, files=("report.json", "steps.png"))
