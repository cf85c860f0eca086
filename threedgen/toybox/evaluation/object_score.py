"""Task "evaluate-3d": make 3D objects of held-out prompts, and judge eight views of each object with the probe.

The probe is a classifier of toybox images. A generate run makes one 3D object from a prompt.

RUN/objects/WORDS-OF-THE-PROMPT/   generate run of each prompt; finished runs are not repeated
RUN/report.json, report.md         metrics with intervals, for the objects and for ground truth of the same prompts
RUN/sheet.png                      views of the objects with captions and verdicts
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from threedgen.config import ConfigError
from threedgen.config.errors import OutOfMemory
from threedgen.evaluation.existing import read_existing
from threedgen.evaluation.metrics.distributions import mottle
from threedgen.evaluation.metrics.figures import Json, mean_estimate, median
from threedgen.evaluation.report import thumbnails
from threedgen.evaluation.runner import Evaluation, evaluation_task
from threedgen.export.run_field import load_run_field
from threedgen.geometry.images import to_uint8
from threedgen.geometry.poses import orbit_array
from threedgen.guidance.matte import Matte
from threedgen.guidance.weights.other_models import MATTE
from threedgen.run import folder as runs
from threedgen.run.arrays import Array
from threedgen.run.metrics import read_summary
from threedgen.systems.generate.options import GenerateConfig
from threedgen.systems.generate.outputs import VIEWS, view_azimuths
from threedgen.systems.generate.task import run_status
from threedgen.train.status import Status
from threedgen.train.task import Stopped, Task

from .fidelity import Surface, roughness, surface, surface_figures
from .held_out import held_out_cases
from .options import Evaluate3DConfig, load_task
from .prior_score import foreground_masks
from .probe import Probe
from .report import Judged, judge_case, write_judged

logger = logging.getLogger(__name__)

TRUTH_SIZE = 128  # side of ground-truth renders and of the images for roughness, pixels
CALIBRATION = 4  # number of ground-truth objects per prompt that the probe judges like the generated object
SHEET_OBJECTS, SHEET_VIEWS, SHEET_SIZE = 30, 4, 192
KEYS = ("noun", "colour", "part", "part_colour", "bound", "one_front", "order", "each_side", "side", "noun_single")


@dataclass(frozen=True)
class MeasuredObject:
    """Measurements of the 3D object that a run made for one prompt.

    The attributes ``true_...`` are measured on renders of a ground-truth object of the same prompt, for comparison.

    Attributes:
        judged: verdicts of the probe (image classifier) on the object and on ground-truth objects.
        views: (V, H, W, 3), V <= 8 views from a ring of cameras, uint8 or floats in [0, 1]; grey if the run failed.
        seconds: duration of the run; None if unknown, or if the run failed.
        failed: whether the run failed, for example because a loss was not finite.
        surface: roughness and translucency of the extracted surface; None if the run failed or there is no surface.
        true_roughness: mean angle between normals of neighbouring pixels of the ground-truth object, degrees.
        mottle, true_mottle: mean distance, in the (a, b) plane of Lab, of the foreground colours of an object from the
            nearest of four colours fitted to them, high for patchy surfaces; None without visible foreground.
            ``mottle`` is measured on ``views``.
    """

    judged: Judged
    views: Array
    seconds: float | None
    failed: bool
    surface: Surface | None
    true_roughness: float | None
    mottle: float | None
    true_mottle: float | None


class Objects3D(Evaluation[Evaluate3DConfig, int, MeasuredObject]):
    """Evaluation that makes one 3D object per held-out prompt, and judges its views and surface (`MeasuredObject`).

    Each item, the argument of `measure`, is the index of a prompt. Held-out prompts have combinations of noun, colour
    and part that training excludes.
    """

    stage = "objects"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        config = self.config
        self.probe, self.matte = Probe.load(config.probe.weights), Matte.load(MATTE)
        self.cases = held_out_cases(config.prompts, config.seed, spread=True)
        self.items = range(len(self.cases))
        self.places = [f"objects/{runs.slug(case.caption)}" for case in self.cases]
        fixed = {"seed": config.seed, "threads": config.threads, "export.enabled": False}
        self.generate: list[GenerateConfig] = []
        for case, place in zip(self.cases, self.places, strict=True):
            values = {"prompt": case.caption, "out": str(self.folder / place), **fixed}
            self.generate.append(load_task("config", "generate", config.config, config.overrides, values))

    def prepare(self) -> None:
        self.existing: Array | None = None
        if self.config.existing is not None:
            table, captions = self.generate[0].result.turntable, [case.caption for case in self.cases]
            c2w = torch.from_numpy(orbit_array(np.deg2rad(table.elevation), view_azimuths(table), table.distance))
            self.existing = read_existing(
                self.config.existing,
                self.folder,
                captions,
                c2w.expand(len(captions), *c2w.shape),
                np.deg2rad(table.fov),
            )

    def measure(self, item: int) -> MeasuredObject:
        config, case, generate = self.config, self.cases[item], self.generate[item]
        self.progress.note(case.caption)
        table = generate.result.turntable
        made = make(generate) if self.existing is None else (self.existing[item], None)
        azimuth, (elevation, fov) = view_azimuths(table), np.deg2rad([table.elevation, table.fov])
        truth = case.render_truth(config.seed, CALIBRATION, table, azimuth, TRUTH_SIZE)
        images = [render.rgb for render in truth]
        turntable, seconds = made or (np.full((len(azimuth), 16, 16, 3), 0.5), None)
        args, found, failed = (self.probe, case, turntable, azimuth, images, CALIBRATION), None, made is None
        if not failed and self.existing is None:
            c2w = orbit_array(elevation, azimuth, table.distance)
            view = load_run_field(Path(str(generate.out))).view
            found = surface(view, c2w, float(fov), TRUTH_SIZE, generate.result.mesh_resolution)
        views = to_uint8(turntable) / np.float32(255)
        return MeasuredObject(
            judge_case(*args, vote=True, failed=failed),
            turntable,
            seconds,
            failed,
            found,
            roughness(truth[0].normal, truth[0].mask),
            mottle(views, foreground_masks(self.matte, views)),
            mottle(truth[0].rgb, truth[0].mask),
        )

    def report(self, rows: list[MeasuredObject]) -> None:
        config = self.config
        fidelity = surface_figures([row.surface for row in rows], [row.true_roughness for row in rows])
        if self.existing is not None:  # existing views have no surfaces to judge
            del fidelity["translucent"], fidelity["without_surface"]
        fidelity["mottle"] = mean_estimate([row.mottle for row in rows])
        fidelity["floor_mottle"] = mean_estimate([row.true_mottle for row in rows])
        own: list[Json] = [
            {"folder": place, "seconds": row.seconds, "mottle": row.mottle}
            for place, row in zip(self.places, rows, strict=True)
        ]
        seconds = [row.seconds for row in rows if row.seconds is not None]
        costs = {"seconds_median": median(seconds), "seconds_most": max(seconds, default=None)}
        figures: Json = {"prompts": len(rows), "config": config.config, "overrides": list(config.overrides)}
        figures |= {"failed": sum(row.failed for row in rows), "costs": costs}
        finished = [k for k, row in enumerate(rows) if not row.failed][:SHEET_OBJECTS]
        shown = {k: thumbnails(rows[k].views[:: VIEWS // SHEET_VIEWS][:SHEET_VIEWS], SHEET_SIZE) for k in finished}
        middle, most = ("-" if value is None else f"{value:.0f} s" for value in costs.values())
        overrides = f" with {' '.join(config.overrides)}" if config.overrides else ""
        made = f"views in {config.existing}" if config.existing else f"config {config.config}{overrides}"
        intro = f"""# 3D objects of held-out prompts

{config.prompts} prompts, one object each, {made}, seed {config.seed}.
Judged by the probe on eight turntable views, noun and colour by majority; beside it the same of {CALIBRATION}
ground-truth objects per prompt."""
        notes = f"""\
One front only: no two of the eight views that show a front are more than 90 degrees apart, and at least one shows it;
for objects that have a front. Its false alarm rate is the difference to 100 % on ground truth.

Seconds per object: median {middle}, at most {most}."""
        judged = [row.judged for row in rows]
        write_judged(self.task, self.probe, judged, KEYS, intro, notes, figures, shown, own, fidelity)


def make(config: GenerateConfig) -> tuple[Array, float | None] | None:
    """Start or resume a generate run on one device. It makes one 3D object. A finished run is not repeated.

    If the run fails during its training, this is a result: there is no object. If it fails before its first checkpoint,
    its config probably does not work at all, or memory is too small, so the error is raised.

    Returns:
        Turntable views (V, H, W, 3) of the object, V <= 8, and the duration of the run in seconds (None: unknown). None
        instead of both if the run failed: a loss was not finite, or ConfigError or OutOfMemory came after a checkpoint.

    Raises:
        Stopped: the run was interrupted.
        ConfigError: it came before the first checkpoint, the run folder cannot be used, or a finished run has no views
            or damaged ones.
        OutOfMemory: it came before the first checkpoint.
    """
    config, resume = runs.open_run(runs.on_one_device(config), "objects")
    folder = Path(str(config.out))
    try:
        status = run_status(config, resume, quiet=True)
    except (ConfigError, OutOfMemory) as error:
        if not any((folder / runs.CHECKPOINTS).glob("*.ckpt")):
            raise
        logger.warning("%s", error)
        status = Status.FAILED
    if status in (Status.INTERRUPTED, Status.TERMINATED):
        raise Stopped(status.exit_code)
    if status is not Status.FINISHED:
        return None
    try:
        with np.load(folder / "views.npz", allow_pickle=False) as file:
            views = file["views"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ConfigError(f"{folder / 'views.npz'} is missing or damaged ({error}). Delete {folder}.") from None
    return views, read_summary(folder).get("seconds")


run = evaluation_task(Objects3D)
