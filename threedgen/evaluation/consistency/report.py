"""Writes what a consistency run found: figures with intervals, a line for each scene, sheets of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.config import config_hash
from threedgen.evaluation.metrics.distributions import fid, kid
from threedgen.evaluation.metrics.figures import mean_estimate, paired_differences
from threedgen.evaluation.tables import finish, markdown_table, with_interval, write_strips
from threedgen.evaluation.toybox.fidelity import features
from threedgen.evaluation.toybox.probe import Probe
from threedgen.geometry.images import enlarge_small, to_uint8
from threedgen.geometry.views import Views
from threedgen.run.arrays import evenly_spaced
from threedgen.run.disk import write_atomic
from threedgen.run.metrics import csv_table
from threedgen.run.seeding import numpy_generator
from threedgen.train.task import Task

from .fits import Score
from .options import ORIGINAL, ConsistencyConfig
from .scenes import Scene

FIGURES = {
    "psnr": "PSNR, dB", "ssim": "SSIM", "tsed": "TSED",
    "true_psnr": "PSNR to the true views", "true_ssim": "SSIM to the true views",
}  # fmt: skip
COLUMNS = ("scene", "row", *FIGURES, "consistent_pairs", "pairs", "matches", "fit_seconds")
SUBSET = 1000
"""Pictures in a subset of KID."""
VIEWS = 10
"""Views of a strip: the given one, if there is one, then others evenly chosen from all, in their order."""
ERROR_GAIN = 3.0
"""Differences on the sheet are shown so many times larger."""


def report(task: Task, scores: Sequence[Score], near: dict[str, Any], notes: Sequence[str]) -> None:
    """Writes consistency.json, .csv, .md and sheet.png, and says the table. ``near``: FID and KID of rows."""
    config: ConsistencyConfig = task.config
    of = {row: [score for score in scores if score["row"] == row] for row in (*config.contestants, ORIGINAL)}
    tree = {
        "samplers": {row: options.name for row, options in config.contestants.items()},
        "scenes_of": config.scenes.name,
        "protocol": config.protocol.name,
        "protocol_hash": config_hash(config.protocol)[:16],
        "held_out_share": config.held_out,
        "rows": {row: summary(config, mine) | near.get(row, {}) for row, mine in of.items() if mine},
        "differences": differences(config, of),
        "notes": list(notes),
        "scenes": list(scores),
    }
    write_atomic(task.folder / "consistency.csv", csv_table(scores, COLUMNS))
    text = table(config, tree["rows"])
    if tree["differences"]:
        text += f"\n\n{difference_table(config, tree['differences'])}"
    if notes:  # said again where the figures are: they were said long before
        text += "\n\n" + "\n".join(f"- {note}" for note in notes)
    write_sheet(task.folder / "sheet.png", task.folder / "scores", scores, config.sheet)
    whole = f"# 3D consistency\n\n{text}\n\n{explained(config)}\n"
    finish(task, "consistency", whole, tree, text, scenes=len({score["scene"] for score in scores}))


def summary(config: ConsistencyConfig, scores: Sequence[Score]) -> dict[str, Any]:
    """Averages each figure over the scenes, with its bootstrap interval."""
    found: dict[str, Any] = {"scenes": len(scores)}
    for key in FIGURES:
        values = [score[key] for score in scores]
        rng = numpy_generator(config.seed, 0, f"bootstrap {key}")
        found[key] = mean_estimate(values, rng, config.bootstrap)
    return found


def differences(config: ConsistencyConfig, of: dict[str, list[Score]]) -> dict[str, Any]:
    """Takes each other sampler from the first, scene by scene: mean, interval, in how many scenes it has more."""
    first, *others = config.contestants
    found: dict[str, Any] = {}
    for row in others:
        less = paired_differences(of[first], of[row], FIGURES)
        found[row] = summary(config, less)
        for key in FIGURES:
            found[row][key]["won"] = sum((one[key] or 0) > 0 for one in less)
    return found


def table(config: ConsistencyConfig, rows: dict[str, Any]) -> str:
    """Tabulates in markdown: a row for each sampler and for the original data."""
    figures = known_figures(rows)
    extra = [key for key in ("fid", "kid") if any(key in row for row in rows.values())]
    heads = ["views", "scenes", *(FIGURES[key] for key in figures), *(key.upper() for key in extra)]
    lines = []
    for row in (*config.contestants, ORIGINAL):
        name = "original data" if row == ORIGINAL else row
        if row not in rows:
            lines.append([f"{name} (none is known)", *["-"] * (len(heads) - 1)])
            continue
        cells = [name, str(rows[row]["scenes"]), *(with_interval(rows[row][key]) for key in figures)]
        lines.append(cells + [f"{rows[row][key]:.3f}" if key in rows[row] else "-" for key in extra])
    return markdown_table(heads, lines)


def difference_table(config: ConsistencyConfig, found: dict[str, Any]) -> str:
    """Tabulates in markdown: what the first sampler has more than each other one."""
    first = next(iter(config.contestants))
    figures = known_figures(found)
    heads = [f"{first} minus", *(FIGURES[key] for key in figures), "scenes with more PSNR"]
    lines = []
    for row, less in found.items():
        lines.append([row, *(with_interval(less[key]) for key in figures), str(less["psnr"]["won"])])
    return markdown_table(heads, lines)


def known_figures(rows: dict[str, Any]) -> list[str]:
    """Lists the figures that any row has."""
    return [key for key in FIGURES if any(row[key]["mean"] is not None for row in rows.values())]


def explained(config: ConsistencyConfig) -> str:
    """Explains what the figures mean and when they may be compared."""
    p = config.protocol
    pixels = "every pixel of every view in each step" if p.rays is None else f"{p.rays} random pixels in each step"
    name = f'"{p.name}" (3DiM, section 7.4{"" if p.name == "paper" else ", subsampled"})'
    return f"""Protocol {name}: a field without view dependence is fitted in {p.steps} steps to
{100 * (1 - config.held_out):.0f} % of a scene's views, {pixels}, and its renders are compared with the
others, which are drawn once and are the same for all samplers. In brackets 95 % bootstrap intervals over the scenes.
Scores compare only within one protocol with the same settings ({config_hash(p)[:16]}); the row of the original data is
what they can be expected to reach at most, but for views that are smoother than it. The columns "to the true views"
compare what was drawn with the original views, which is no measure of consistency: a made-up side that differs from the
true one costs there and not here. TSED: share of neighbouring views with at least {config.tsed.t_matches} matches and a
median symmetric epipolar distance below {config.tsed.t_error:g} pixels of a picture of 256."""


def pictures(folder: Path, score: Score) -> tuple[np.ndarray, np.ndarray]:
    """Reads held-out views and renders (V, H, W, 3) uint8 of a score."""
    with np.load(folder / f"{score['scene']}.{score['row']}.npz", allow_pickle=False) as file:
        return file["held"], file["render"]


def write_sheet(path: Path, folder: Path, scores: Sequence[Score], count: int) -> None:
    """Draws for ``count`` scenes the held-out view of middling PSNR, the field's render, the difference; two rows a
    line."""
    names = list(dict.fromkeys(score["scene"] for score in scores))[:count]
    strips, labels = [], []
    for score in (score for name in names for score in scores if score["scene"] == name):
        each = score["each"]["psnr"]
        middle = int(np.argsort(each)[len(each) // 2])
        held, render = (stack[middle] for stack in pictures(folder, score))
        error = np.clip(ERROR_GAIN * np.abs(held.astype(float) - render), 0, 255).astype(np.uint8)
        strips.append(enlarge_small(np.stack([held, render, error])))
        words = f"{score['scene']} {score['row']}: drawn; field, {each[middle]:.1f} dB; error x {ERROR_GAIN:g}"
        labels.append(words)
    write_strips(path, strips, labels, min(2, len({score["row"] for score in scores})))


def distances(probe: Probe, folder: Path, scores: Sequence[Score]) -> dict[str, Any]:
    """Measures FID and KID (not scaled) between all held-out views and all renders of each row, on the probe's
    features."""
    found: dict[str, Any] = {}
    for row in dict.fromkeys(score["row"] for score in scores):
        stacks = [pictures(folder, score) for score in scores if score["row"] == row]
        held, renders = (features(probe, column) for column in zip(*stacks, strict=True))
        if (count := len(held)) > 1:
            subsets, size = (100, SUBSET) if count > SUBSET else (1, count)
            found[row] = {"fid": fid(held, renders), "kid": kid(held, renders, subsets, size)[0], "pictures": count}
    return found


def strip(scene: Scene, views: Views) -> np.ndarray:
    """Chooses the views of a strip, uint8 (V, H, W, 3)."""
    targets = scene.targets
    chosen = [targets[k] for k in evenly_spaced(len(targets), VIEWS - len(scene.condition))]
    return to_uint8(views.images[[*scene.condition, *chosen]])
