"""Carries out the task "evaluate-3d": held-out prompts become 3D objects; the probe looks at eight sides of each.

RUN/objects/WORDS-OF-THE-PROMPT/   the generate runs; finished ones are not made again
RUN/report.json, report.md         figures with intervals, beside ground-truth turntables of the same prompts
RUN/sheet.png                      the objects with captions and verdicts
RUN/side_by_side.png               (assets=true) truth, sampled views, object and asset of each
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from threedgen.config import ConfigError
from threedgen.config.errors import OutOfMemory
from threedgen.data.toybox.raycast import RenderResult
from threedgen.data.toybox.world import render_orbit
from threedgen.evaluation.metrics.colour import mottle
from threedgen.evaluation.metrics.figures import mean, median
from threedgen.evaluation.tables import thumbnails, write_strips
from threedgen.geometry.images import to_uint8
from threedgen.geometry.poses import orbit_array
from threedgen.guidance.matte import Matte
from threedgen.run import folder as runs
from threedgen.run.metrics import read_summary
from threedgen.run.progress import Count
from threedgen.systems.generate.options import GenerateConfig
from threedgen.systems.generate.outputs import VIEWS, view_azimuths
from threedgen.systems.generate.task import run_status
from threedgen.train.status import Status
from threedgen.train.task import Stopped, Task, run_task

from .fidelity import Surface, roughness, surface, surface_figures
from .held_out import Case, held_out_cases
from .open_prompts import opaque
from .options import Evaluate3DConfig, EvaluateSubjectsConfig, load_task
from .report import Scores
from .side_by_side import strip

logger = logging.getLogger(__name__)

SEEN = 128
"""Pixels of the ground truth, and of the pictures on which roughness is measured."""
KEYS = ("noun", "colour", "part", "part_colour", "bound", "one_front", "order", "each_side", "side", "noun_single")


@dataclass(frozen=True)
class Result:
    """An object's views (8, H, W, 3), where their cameras stood (8,) in radians, and what it cost. One whose loss broke
    down has ``failed``, and grey views."""

    views: np.ndarray
    azimuth: np.ndarray
    seconds: float | None = None
    failed: bool = False


def evaluate(task: Task) -> None:
    """Makes, judges, reports. Raises ConfigError before any run if something is missing, Stopped for one that was."""
    config: Evaluate3DConfig = task.config
    scores, cases = Scores(task), held_out_cases(config.prompts, config.seed, spread=True)
    places = [f"objects/{runs.slug(case.caption)}" for case in cases]
    more: dict[str, Any] = {"export.enabled": config.assets}
    pairs = zip((case.caption for case in cases), places, strict=True)
    configs = [object_config(config, "config", *pair, **more) for pair in pairs]
    results = list[Result]()
    with Count("objects", len(cases), task.quiet) as count:
        for case, generate in zip(cases, configs, strict=True):
            results.append(make(generate))
            count.add(1, case.caption)
    surfaces, smooth, beside = list[Surface | None](), list[float | None](), list[np.ndarray]()
    matte, spots = Matte.load(config.matte), list[tuple[float | None, float | None]]()
    with Count("looking", len(cases), task.quiet) as count:
        for case, generate, result in zip(cases, configs, results, strict=True):
            real = [true_turntable(case, generate, config.seed, k) for k in range(max(2, config.calibration))]
            pictures = [picture.rgb for picture in real]
            scores.add(case, result.views, result.azimuth, pictures, config.calibration, True, result.failed)
            smooth.append(roughness(real[0].normal, real[0].mask))
            seen = to_uint8(result.views) / np.float32(255)
            spots.append((mottle(seen, opaque(matte, seen)), mottle(real[0].rgb, real[0].mask)))
            surfaces.append(None if result.failed else surface_of_run(generate))
            if config.assets and not result.failed:
                beside.append(strip(generate, real[0], result.views, SEEN))
            count.add(1)
    compared = [case.caption for case, result in zip(cases, results, strict=True) if not result.failed]
    write_strips(task.folder / "side_by_side.png", beside, compared, 2)
    own = [
        {"folder": place, "seconds": result.seconds, "mottle": spot}
        for place, result, (spot, _) in zip(places, results, spots, strict=True)
    ]
    near = surface_figures(surfaces, smooth) | {
        key: mean([spot[k] for spot in spots]) for k, key in enumerate(("mottle", "floor_mottle"))
    }
    seconds = [result.seconds for result in results if result.seconds is not None]
    costs = {"seconds_median": median(seconds), "seconds_most": max(seconds, default=None)}
    about = {
        "prompts": len(cases),
        "config": config.config,
        "overrides": list(config.overrides),
        "failed": sum(result.failed for result in results),
        "costs": costs,
    }
    each = VIEWS // config.sheet_views
    there = [k for k, result in enumerate(results) if not result.failed][: config.sheet]
    shown = {k: thumbnails(results[k].views[::each][: config.sheet_views], 192) for k in there}
    middle, most = ("-" if value is None else f"{value:.0f} s" for value in costs.values())
    changes = f" with {' '.join(config.overrides)}" if config.overrides else ""
    before = f"""# 3D objects of held-out prompts

{config.prompts} prompts, one object each, config {config.config}{changes}, seed {config.seed}.
Judged by the probe on eight turntable views, noun and colour by majority; beside it the same of {config.calibration}
ground-truth objects for each prompt."""
    after = f"""\
One front only: no two of the eight views that show a front are more than 90 degrees apart, and one does show it;
asked of things that have a front. Its false alarm rate is what is missing to 100 % on ground truth.

Seconds for an object: median {middle}, at most {most}."""
    scores.report(KEYS, before, after, about, shown, own, near)


def object_config(
    config: Evaluate3DConfig | EvaluateSubjectsConfig, key: str, prompt: str, place: str, **more: Any
) -> GenerateConfig:
    """Loads the config of one prompt's run in ``place``, without a game-ready asset: the field itself is measured.

    ``key``: which of the evaluation's keys names the generate config; ``more``: further values. Raises ConfigError.
    """
    values = {"prompt": prompt, "seed": config.seed, "threads": config.threads, "export.enabled": False}
    values |= {"out": str(Path(str(config.out)) / place), **more}
    overrides = config.overrides if key == "config" else ()
    return load_task(key, "generate", str(getattr(config, key)), overrides, values)


def make(config: GenerateConfig) -> Result:
    """Carries out, or goes on with, one run, and reads its views, cameras and costs; a finished one is left as it is.

    Raises Stopped for one that was, and ConfigError for what is wrong with all of them, or lacks its views.
    """
    begun, resume = runs.open_run(config, "objects")
    folder, azimuth = Path(str(begun.out)), view_azimuths(config.result.turntable)
    try:
        status = run_status(begun, resume, quiet=True)
    except (ConfigError, OutOfMemory) as error:
        if not any((folder / runs.CHECKPOINTS).glob("*.ckpt")):
            raise
        logger.warning("%s", error)
        status = Status.FAILED
    if status in (Status.INTERRUPTED, Status.TERMINATED):
        raise Stopped(status.exit_code)
    if status is not Status.FINISHED:
        return Result(np.full((VIEWS, 16, 16, 3), 0.5), azimuth, failed=True)
    try:
        with np.load(folder / "views.npz", allow_pickle=False) as file:
            views = file["views"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ConfigError(
            f"{folder} lacks views.npz of a finished run, or an older version made it ({error}); delete it and go on"
        ) from None
    summary = read_summary(folder)
    return Result(views, azimuth, summary.get("seconds"))


def true_turntable(case: Case, generate: GenerateConfig, seed: int, number: int) -> RenderResult:
    """Renders a ground-truth object of the prompt as the turntable of a run would see it, with its normals."""
    table, (azimuth, elevation, fov) = generate.result.turntable, angles(generate)
    near = table.distance * np.tan(fov / 2)
    return render_orbit(
        case.truth(seed, number), azimuth, elevation, SEEN, with_gbuffer=True, fov=fov, relative_distance=near
    )


def surface_of_run(generate: GenerateConfig) -> Surface | None:
    """Measures the surface of a finished run from the same places."""
    azimuth, elevation, fov = angles(generate)
    c2w = orbit_array(elevation, azimuth, generate.result.turntable.distance)
    return surface(Path(str(generate.out)), c2w, fov, SEEN, generate.result.mesh_resolution)


def angles(generate: GenerateConfig) -> tuple[np.ndarray, float, float]:
    """Gives the azimuths of the views, their elevation and vertical angle of view, in radians."""
    table = generate.result.turntable
    return view_azimuths(table), float(np.deg2rad(table.elevation)), float(np.deg2rad(table.fov))


run = partial(run_task, evaluate, result="report.md", again=True)
