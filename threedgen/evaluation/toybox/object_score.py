"""Carries out the task "evaluate-3d": held-out prompts become 3D objects; the probe looks at eight sides of each.

RUN/objects/WORDS-OF-THE-PROMPT/   the generate runs; finished ones are not made again
RUN/report.json, report.md         figures with intervals, beside ground-truth turntables of the same prompts
RUN/sheet.png                      the objects with captions and verdicts
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from threedgen.config import ConfigError, load, task_of
from threedgen.run import folder as runs
from threedgen.run.metrics import read_summary, write_summary
from threedgen.run.progress import Count
from threedgen.systems.generate.options import GenerateConfig
from threedgen.systems.generate.outputs import VIEWS, view_azimuths
from threedgen.systems.generate.task import run_status
from threedgen.train.loop import Status

from .held_out import Case, held_out_cases
from .judging import Verdict, judge_pictures
from .labels import ring
from .options import Evaluate3DConfig
from .probe import Probe
from .report import write_scores

logger = logging.getLogger(__name__)

KEYS = ("noun", "colour", "part", "part_colour", "bound", "one_front", "order", "each_side", "side", "noun_single")


@dataclass(frozen=True)
class Result:
    """A finished run: its views (8, H, W, 3) uint8, where their cameras stood (radians), and what it cost."""

    views: np.ndarray
    azimuth: np.ndarray
    seconds: float | None
    memory_mib: float | None


def run(config: Evaluate3DConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Makes, judges, reports; returns the exit code. Raises ConfigError before any run if something is missing."""
    begun, folder = time.monotonic(), Path(str(config.out))
    probe = Probe.load(config.probe.weights)
    cases = held_out_cases(config.prompts, config.seed, config.first, spread=True)
    configs = [generate_config(config, case, folder) for case in cases]
    results: list[Result | None] = []
    with Count("objects", len(cases), quiet) as count:
        for case, generate in zip(cases, configs, strict=True):
            status = make(generate)
            if status in (Status.INTERRUPTED, Status.TERMINATED):
                return status.exit_code
            results.append(read(generate) if status is Status.FINISHED else None)
            count.add(1, case.caption)
    measured = [judge_result(probe, case, result) for case, result in zip(cases, results, strict=True)]
    with Count("ground truth", len(cases), quiet) as count:
        truth = []
        for case, generate in zip(cases, configs, strict=True):
            truth += judge_truth(probe, case, generate, config)
            count.add(1)
    write(config, folder, cases, results, measured, truth)
    write_summary(folder, config, time.monotonic() - begun, status="finished")
    print(folder / "report.md")
    return 0


# --- the objects -------------------------------------------------------------------------------------------------


def generate_config(config: Evaluate3DConfig, case: Case, folder: Path) -> GenerateConfig:
    """Loads the config of one prompt's run, without a game-ready asset: the field itself is measured."""
    return load_task(
        "config",
        "generate",
        config.config,
        config.overrides,
        {
            "prompt": case.caption,
            "seed": config.seed,
            "threads": config.threads,
            "out": str(folder / "objects" / runs.slug(case.caption)),
            "export.enabled": False,
        },
    )


def load_task(key: str, task: str, name: str, overrides: Sequence[str], values: dict[str, Any]) -> Any:
    """Loads the config ``name``, which ``key`` names, with changes. Raises ConfigError for one of another task."""
    if (found := task_of(name)) != task:
        raise ConfigError(f"should be a config of the task {task} (got {name!r}, {found})", key)
    return load(name, list(overrides), values)


def make(config: GenerateConfig) -> Status:
    """Carries out, or goes on with, one run; a finished one is left as it is.

    A run whose loss broke down is FAILED and counts as wrong. Raises ConfigError for what is wrong with them all.
    """
    begun, resume = runs.begin(config, "objects")
    folder = Path(str(begun.out))
    try:
        return run_status(begun, resume, quiet=True)
    except ConfigError as error:
        if not any((folder / "checkpoints").glob("*.ckpt")):
            raise
        logger.warning("%s", error)
        return Status.FAILED


def read(config: GenerateConfig) -> Result:
    """Reads views, cameras and costs of a finished run. Raises ConfigError for a folder that lacks its views."""
    folder = Path(str(config.out))
    try:
        with np.load(folder / "views.npz", allow_pickle=False) as file:
            views = file["views"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ConfigError(
            f"{folder} lacks views.npz of a finished run, or an older version made it ({error}); delete it and go on"
        ) from None
    summary = read_summary(folder)
    return Result(views, view_azimuths(config.result.turntable), summary.get("seconds"), summary.get("peak_memory_mib"))


def judge_result(probe: Probe, case: Case, result: Result | None) -> Verdict:
    """Judges an object, noun and colour by majority of its views; a run that failed is wrong in all that is asked."""
    if result is not None:
        return judge_pictures(probe, result.views, case.spec, result.azimuth, vote=True)
    asked = judge_pictures(probe, np.full((8, 16, 16, 3), 0.5), case.spec, np.zeros(8), vote=True)
    wrong = {key: [False] * 8 if isinstance(value, list) else False for key, value in asked.answers.items()}
    return Verdict(wrong, {"noun": "nothing", "colour": "no"}, -99.0, None, None)


def judge_truth(probe: Probe, case: Case, generate: GenerateConfig, config: Evaluate3DConfig) -> list[Verdict]:
    """Asks the same about ground-truth turntables of the prompt: how often does the meter itself err?"""
    turntable = generate.result.turntable
    azimuth = view_azimuths(turntable)
    elevation, fov = np.deg2rad(turntable.elevation), np.deg2rad(turntable.fov)
    verdicts = []
    for number in range(config.calibration):
        asset = case.truth(config.seed, number)
        pictures = ring(asset, azimuth, elevation, turntable.distance * np.tan(fov / 2), fov, 128)
        verdicts.append(judge_pictures(probe, pictures, case.spec, azimuth, vote=True))
    return verdicts


# --- the report --------------------------------------------------------------------------------------------------


def write(
    config: Evaluate3DConfig,
    folder: Path,
    cases: Sequence[Case],
    results: Sequence[Result | None],
    measured: Sequence[Verdict],
    truth: Sequence[Verdict],
) -> None:
    """Writes report.json, report.md and sheet.png."""
    seconds = [result.seconds for result in results if result and result.seconds is not None]
    memory = [result.memory_mib for result in results if result and result.memory_mib is not None]
    costs = {
        "seconds_median": float(np.median(seconds)) if seconds else None,
        "seconds_most": max(seconds, default=None),
        "peak_memory_mib_most": max(memory, default=None),
    }
    about = {
        "prompts": len(cases),
        "config": config.config,
        "overrides": list(config.overrides),
        "failed": results.count(None),
        "costs": costs,
    }
    own = [
        {
            "folder": f"objects/{runs.slug(case.caption)}",
            "seconds": result.seconds if result else None,
            "peak_memory_mib": result.memory_mib if result else None,
        }
        for case, result in zip(cases, results, strict=True)
    ]
    each = VIEWS // config.sheet_views
    there = [(k, result.views[::each][: config.sheet_views]) for k, result in enumerate(results) if result]
    shown = {k: thumbnails(views) for k, views in there[: config.sheet]}
    write_scores(folder, config, cases, measured, truth, KEYS, page(config, costs), about, shown, own)


def thumbnails(pictures: np.ndarray) -> np.ndarray:
    """Brings pictures (V, H, W, 3) down to 192 pixels at most, so that a sheet of many can be looked at."""
    size = min(192, pictures.shape[1], pictures.shape[2])
    small = [Image.fromarray(picture).resize((size, size), Image.Resampling.BOX) for picture in pictures]
    return np.stack([np.asarray(picture) for picture in small])


def page(config: Evaluate3DConfig, costs: dict[str, float | None]) -> tuple[str, str]:
    """Words report.md before and after its table."""

    def cost(key: str, unit: str) -> str:
        value = costs[key]
        return "-" if value is None else f"{value:.0f} {unit}"

    changes = f" with {' '.join(config.overrides)}" if config.overrides else ""
    before = f"""# 3D objects of held-out prompts

{config.prompts} prompts, one object each, config {config.config}{changes}, seed {config.seed}.
Judged by the probe on eight turntable views, noun and colour by majority; beside it the same of {config.calibration}
ground-truth objects for each prompt."""
    after = f"""\
One front only: no two of the eight views that show a front are more than 90 degrees apart, and one does show it;
asked of things that have a front. Its false alarm rate is what is missing to 100 % on ground truth.

Seconds for an object: median {cost("seconds_median", "s")}, at most {cost("seconds_most", "s")}.
Peak memory of the process that made them all: {cost("peak_memory_mib_most", "MiB")}."""
    return before, after
