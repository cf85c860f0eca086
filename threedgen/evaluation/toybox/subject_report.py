"""Writes the report of evaluate-subjects: every way of tuning beside the base, paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.evaluation.metrics.figures import Share, bootstrap, median, share
from threedgen.evaluation.tables import finish, limits, markdown_table, percent
from threedgen.geometry.images import grid, pad_to_same_size, write_png
from threedgen.geometry.picture_file import load_image
from threedgen.train.task import Task

from .options import EvaluateSubjectsConfig

VIEWS = 4
"""Of each sample."""
Rows = Sequence[dict[str, Any]]
NAMES = {"l1": "preservation L1", "l2": "preservation L2", "images": "class images", "lora": "LoRA", "none": "none"}


def report(task: Task, rows: Rows) -> None:
    """Writes report.json, .md and sheet.png. ``rows``: of each subject its folder's name and what was ``found``."""
    config, folder = task.config, task.folder
    figures = {key: compared(rows, key) for key in (row_key(*row) for row in config.rows)}
    base = float(np.mean([row["found"]["base"]["identity"] for row in rows]))
    text = f"""# Subjects

{len(rows)} toybox subjects, {config.photos} photos each, {len(config.settings)} prompts, four views, DDIM
{config.steps} steps, guidance {config.guidance_scale:g}, seed {config.seed}. Identity is the mean cosine to the
subject's true views; that of the base, asked for the kind of thing, is {base:.3f}. Differences are tuned minus base
from the same noise and cameras, their 95 % intervals bootstrapped over subjects. A score is the share of the probe's
right answers: for the subject's own prompts beside the base's for the class, for the class's, for held-out ones.

{table(figures)}
{objects_text(rows, config)}"""
    write_png(folder / "sheet.png", sheet(config, folder / "subjects", rows))
    if config.objects is not None:
        write_png(folder / "objects.png", sheet(config, folder / "subjects", rows, "-3d"))
    finish(task, "report", text, {"base_identity": base, "compared": figures, "subjects": list(rows)})


def row_key(kind: str, strength: float) -> str:
    """Names a row in files: "images", or "images-0.6" with less than all of it."""
    return kind if strength == 1 else f"{kind}-{strength:g}"


def row_name(key: str) -> str:
    """Names a row for people: "class images", or "class images, strength 0.6"."""
    kind, _, strength = key.partition("-")
    return f"{NAMES[kind]}, strength {strength}" if strength else NAMES[kind]


def sheet(config: EvaluateSubjectsConfig, inside: Path, rows: Rows, of: str = "") -> np.ndarray:
    """Draws a row for each subject: photos, then four views each of the base, of the tuned prior in the first two
    settings, and, of samples, of its class; ``of``: "-3d" for objects."""
    key, settings = row_key(*config.rows[0]), [f" {setting}" if setting else "" for setting in config.settings[:2]]
    shown = {f"base{of}-0": "{}, base"}
    shown |= {f"{key}{of}-{k}": f"[v]{setting}, {row_name(key)}" for k, setting in enumerate(settings)}
    if not of:
        shown[f"{key}-class-0"] = "{}, after that"
    cells, labels = [], []
    for row in rows:
        place, noun = inside / row["subject"], row["subject"].split("-", 1)[-1]
        photos = [read_rgb(path, half=True) for path in sorted((place / "photos").glob("*.png"))[:VIEWS]]
        cells.append(grid(photos, VIEWS))
        height = cells[-1].shape[0]  # objects may be seen in more pixels
        cells += [read_rgb(place / f"{name}.png", height=height) for name in shown]
        labels += [f"{noun}, photos", *(label.format(noun) for label in shown.values())]
    return grid(pad_to_same_size(cells), 1 + len(shown), labels)


def read_rgb(path: Path, half: bool = False, height: int | None = None) -> np.ndarray:
    """Reads uint8 (H, W, 3), scaled to a ``height`` if it is given; photos are taken at twice the size of samples."""
    seen = load_image(path).convert("RGB").reduce(2 if half else 1)
    return np.asarray(seen.resize((round(seen.width * height / seen.height), height)) if height else seen)


def compared(rows: Rows, kind: str) -> dict[str, Any]:
    """Compares one way of tuning with the base: what was ``gained``, and shares of its own."""

    def difference(ours: str, theirs: str, inside: str = "") -> tuple[float, float, float]:
        tuned = [row["found"][kind][inside] if inside else row["found"][kind] for row in rows]
        before = [row["found"]["base"][theirs] for row in rows]
        return gained([np.mean(t[ours]) - np.mean(b) for t, b in zip(tuned, before, strict=True)])

    def of_answers(key: str) -> dict[str, Any]:
        return share([answer[key] for row in rows for answer in row["found"][kind]["answers"]]).plain()

    return {
        "identity": float(np.mean([row["found"][kind]["identity"] for row in rows])),
        "identity_gain": difference("identity", "identity"),
        "own_change": difference("scores", "scores"),
        "class_change": difference("scores", "scores", "class"),
        "held_out_change": difference("held_out", "held_out"),
        "order": of_answers("order"),
        "bound": of_answers("bound"),
        "seconds": median([row["found"][kind].get("seconds") for row in rows]),
    }


def gained(differences: Sequence[float]) -> tuple[float, float, float]:
    """Averages the differences of pairs, with the 95 % interval; of one pair there is no interval but itself."""
    middle = float(np.mean(differences))
    return middle, *(bootstrap(differences) or (middle, middle))


def table(figures: Mapping[Any, dict[str, Any]]) -> str:
    """Tabulates in markdown."""
    head = ["", "identity", "more than the base", "sides in order", "accessory in its colour",
            "its prompts, points", "class prompts, points", "held-out prompts, points", "seconds"]  # fmt: skip
    rows = []
    for kind, found in figures.items():
        cells = [row_name(kind), f"{found['identity']:.3f}", _interval(found["identity_gain"], 1, 3)]
        cells += [_share(found["order"]), _share(found["bound"])]
        cells += [_interval(found[key], 100, 1) for key in ("own_change", "class_change", "held_out_change")]
        rows.append([*cells, "-" if found["seconds"] is None else f"{found['seconds']:.0f}"])
    return markdown_table(head, rows)


def objects_text(rows: Rows, config: EvaluateSubjectsConfig) -> str:
    """Words a paragraph about the 3D objects, if any were made."""
    if config.objects is None:
        return ""
    key, seen = row_key(*config.rows[0]), [row["found"] for row in rows]
    before, now = ([float(np.mean(found[name]["objects"]["identity"])) for found in seen] for name in ("base", key))
    gain = gained([b - a for a, b in zip(before, now, strict=True)])
    ours, theirs = (
        share([answer["order"] for found in seen for answer in found[name]["objects"]["answers"]])
        for name in (key, "base")
    )
    return f"""
3D objects, made by {config.objects} with the prior tuned by {row_name(key)}: identity {np.mean(now):.3f}, more than the
base's by {_interval(gain, 1, 3)}; sides in order {percent(ours)}, {limits(ours)},
of the base's {percent(theirs)}.
"""


def _interval(found: Sequence[float], scale: float, digits: int) -> str:
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in found)
    return f"{mean} ({low} to {high})"


def _share(plain: dict[str, Any]) -> str:
    figure = Share.of(plain)
    return f"{percent(figure)}, {limits(figure)}"
