"""The task "evaluate-3d": held-out prompts become 3D objects, and the probe looks at eight sides of each.

    RUN/objects/WORDS-OF-THE-PROMPT/   the generate runs; finished ones are not made again
    RUN/report.json, report.md         figures with intervals, beside ground-truth turntables of the same prompts
    RUN/sheet.png                      the objects with captions and verdicts
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from threedgen.config import ConfigError, load, task_of
from threedgen.run import folder as runs
from threedgen.run.metrics import write_summary
from threedgen.run.progress import Count
from threedgen.systems.generate.options import GenerateConfig
from threedgen.systems.generate.outputs import VIEWS, view_indices
from threedgen.systems.generate.task import run_status
from threedgen.train.loop import Status

from .held_out import Case, held_out_cases
from .judging import Verdict, judge_pictures
from .labels import ring
from .options import Evaluate3DConfig
from .probe import Probe, locate, read_card
from .report import figures_plain, table, worst, worst_text, write_report, write_sheet

logger = logging.getLogger(__name__)

KEYS = ("noun", "colour", "part", "part_colour", "bound", "one_front", "order", "each_side", "side", "noun_single")


@dataclass(frozen=True)
class Made:
    """A finished run: its views (8, H, W, 3) uint8, where their cameras stood (radians), and what it cost."""

    views: np.ndarray
    azimuth: np.ndarray
    seconds: float | None
    memory_mib: float | None


def run(config: Evaluate3DConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Make, look, report; returns the exit code. Raises ConfigError before any run if something is missing."""
    begun, folder = time.monotonic(), Path(str(config.out))
    probe = Probe.load(config.probe.weights)
    cases = held_out_cases(config.prompts, config.seed, config.first, spread=True)
    configs = [generate_config(config, case, folder) for case in cases]
    made: list[Made | None] = []
    with Count("objects", len(cases), quiet) as count:
        for case, wanted in zip(cases, configs, strict=True):
            status = make(wanted)
            if status in (Status.INTERRUPTED, Status.TERMINATED):
                return status.exit_code
            made.append(read(wanted) if status is Status.FINISHED else None)
            count.add(1, case.caption)
    measured = [verdict(probe, case, thing) for case, thing in zip(cases, made, strict=True)]
    with Count("ground truth", len(cases), quiet) as count:
        truth = []
        for case, wanted in zip(cases, configs, strict=True):
            truth += calibrate(probe, case, wanted, config)
            count.add(1)
    write(config, folder, cases, made, measured, truth)
    write_summary(folder, config, time.monotonic() - begun, status="finished")
    print(folder / "report.md")
    return 0


# --- the objects -------------------------------------------------------------------------------------------------


def generate_config(config: Evaluate3DConfig, case: Case, folder: Path) -> GenerateConfig:
    """The run of one prompt, without a game-ready asset: the field itself is measured. ConfigError: another task."""
    values: dict[str, Any] = {
        "prompt": case.caption,
        "seed": config.seed,
        "threads": config.threads,
        "out": str(folder / "objects" / runs.slug(case.caption)),
        "export.enabled": False,
    }
    if (task := task_of(config.config)) != "generate":
        raise ConfigError(f"should be a config of the task generate (got {config.config!r}, {task})", "config")
    return load(config.config, list(config.overrides), values)


def make(config: GenerateConfig) -> Status:
    """Carry out, or go on with, one run; a finished one is left as it is.

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


def read(config: GenerateConfig) -> Made:
    """Views, cameras and costs of a finished run. Raises ConfigError for a folder that lacks its pictures."""
    folder, table_of = Path(str(config.out)), config.result.turntable
    path = folder / "views.png"
    try:
        with Image.open(path) as image:
            sheet = np.asarray(image.convert("RGB"))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        indices = view_indices(table_of.n_view)
        views = cut(sheet, len(indices), VIEWS // 2, table_of.height, table_of.width)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} lacks the pictures of a finished run ({error}); delete it and go on") from None
    azimuth = np.deg2rad(table_of.azimuth) + 2 * np.pi * np.asarray(indices) / table_of.n_view
    return Made(views, azimuth, summary.get("seconds"), summary.get("peak_memory_mib"))


def cut(sheet: np.ndarray, count: int, columns: int, height: int, width: int) -> np.ndarray:
    """The pictures (count, height, width, 3) of a contact sheet without labels: what ``images.grid`` put together.

    ValueError for a sheet of another size.
    """
    columns = min(columns, count)
    rows, gap = -(-count // columns), (sheet.shape[1] - columns * width) // (columns + 1)
    if sheet.shape[:2] != (rows * (height + gap) + gap, columns * (width + gap) + gap):
        raise ValueError(f"a sheet of {sheet.shape[1]} x {sheet.shape[0]} does not hold {count} of {width} x {height}")
    places = [divmod(k, columns) for k in range(count)]
    corners = [(gap + row * (height + gap), gap + column * (width + gap)) for row, column in places]
    return np.stack([sheet[y : y + height, x : x + width] for y, x in corners])


def verdict(probe: Probe, case: Case, made: Made | None) -> Verdict:
    """Noun and colour by majority of the views; a run that failed is wrong in everything that is asked."""
    if made is not None:
        return judge_pictures(probe, made.views, case.spec, made.azimuth, vote=True)
    asked = judge_pictures(probe, np.full((8, 16, 16, 3), 0.5), case.spec, np.zeros(8), vote=True)
    wrong = {key: [False] * 8 if isinstance(value, list) else False for key, value in asked.answers.items()}
    return Verdict(wrong, {"noun": "nothing", "colour": "no"}, -99.0, None, None)


def calibrate(probe: Probe, case: Case, wanted: GenerateConfig, config: Evaluate3DConfig) -> list[Verdict]:
    """The same questions about ground-truth turntables of the prompt: how often does the meter itself err?"""
    table_of = wanted.result.turntable
    indices = np.asarray(view_indices(table_of.n_view))
    azimuth = np.deg2rad(table_of.azimuth) + 2 * np.pi * indices / table_of.n_view
    elevation, fov = np.deg2rad(table_of.elevation), np.deg2rad(table_of.fov)
    verdicts = []
    for number in range(config.calibration):
        asset = case.truth(config.seed, number)
        pictures = ring(asset, azimuth, elevation, table_of.distance * np.tan(fov / 2), fov, 128)
        verdicts.append(judge_pictures(probe, pictures, case.spec, azimuth, vote=True))
    return verdicts


# --- the report --------------------------------------------------------------------------------------------------


def write(
    config: Evaluate3DConfig,
    folder: Path,
    cases: list[Case],
    made: list[Made | None],
    measured: list[Verdict],
    truth: list[Verdict],
) -> None:
    """report.json, report.md and sheet.png."""
    captions = [case.caption for case in cases]
    rows = worst(captions, measured, config.worst)
    seconds = [thing.seconds for thing in made if thing and thing.seconds is not None]
    memory = [thing.memory_mib for thing in made if thing and thing.memory_mib is not None]
    costs = {
        "seconds_median": float(np.median(seconds)) if seconds else None,
        "seconds_most": max(seconds, default=None),
        "peak_memory_mib_most": max(memory, default=None),
    }
    figures = {
        "prompts": len(cases),
        "config": config.config,
        "overrides": list(config.overrides),
        "failed": sum(thing is None for thing in made),
        "costs": costs,
        "measured": figures_plain(measured),
        "probe_on_truth": figures_plain(truth),
        "probe_accuracy": read_card(locate(config.probe.weights)).get("accuracy"),
        "worst": rows,
        "objects": [
            {
                "caption": captions[k],
                "folder": f"objects/{runs.slug(captions[k])}",
                "seconds": thing.seconds if thing else None,
                "peak_memory_mib": thing.memory_mib if thing else None,
                **measured[k].plain(),
            }
            for k, thing in enumerate(made)
        ],
    }
    write_report(folder, page(config, cases, measured, truth, costs, worst_text(rows)), figures)
    each = VIEWS // config.sheet_views
    shown = [(k, thing.views[::each][: config.sheet_views]) for k, thing in enumerate(made) if thing][: config.sheet]
    numbers = [k for k, _ in shown]
    views = [thumbnails(pictures) for _, pictures in shown]
    write_sheet(folder / "sheet.png", views, [captions[k] for k in numbers], [measured[k] for k in numbers])


def thumbnails(pictures: np.ndarray) -> np.ndarray:
    """Pictures (V, H, W, 3) brought down to 192 pixels at most, so that a sheet of many can be looked at."""
    size = min(192, pictures.shape[1], pictures.shape[2])
    small = [Image.fromarray(picture).resize((size, size), Image.Resampling.BOX) for picture in pictures]
    return np.stack([np.asarray(picture) for picture in small])


def page(
    config: Evaluate3DConfig,
    cases: list[Case],
    measured: list[Verdict],
    truth: list[Verdict],
    costs: dict[str, float | None],
    worst_list: str,
) -> str:
    """report.md"""

    def shown(key: str, unit: str) -> str:
        value = costs[key]
        return "-" if value is None else f"{value:.0f} {unit}"

    changes = f" with {' '.join(config.overrides)}" if config.overrides else ""
    return f"""# 3D objects of held-out prompts

{len(cases)} prompts, one object each, config {config.config}{changes}, seed {config.seed}.
Judged by the probe on eight turntable views, noun and colour by majority; beside it the same of {config.calibration}
ground-truth objects for each prompt.

{table(measured, truth, KEYS)}

One front only: no two of the eight views that show a front are more than 90 degrees apart, and one does show it;
asked of things that have a front. Its false alarm rate is what is missing to 100 % on ground truth.

Seconds for an object: median {shown("seconds_median", "s")}, at most {shown("seconds_most", "s")}.
Peak memory of the process that made them all: {shown("peak_memory_mib_most", "MiB")}.

## The worst

{worst_list}
"""
