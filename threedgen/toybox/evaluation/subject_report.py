"""Report of the task "evaluate-subjects": compare tuned priors with the base prior, subject by subject."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from threedgen.evaluation.metrics.figures import Json, Share, bootstrap, median, share
from threedgen.evaluation.report import format_limits, format_share, markdown_table, write_report
from threedgen.geometry.images import grid, write_png
from threedgen.geometry.picture_file import load_image
from threedgen.run.arrays import Array
from threedgen.train.task import Task

from .options import EvaluateSubjectsConfig

VIEWS = 4
"""Number of views per sample."""
Rows = Sequence[Json]
"""One JSON object per subject: ``subject`` is the name of its folder, ``found`` maps table rows to measurements."""
NAMES = {"l1": "preservation L1", "l2": "preservation L2", "images": "class images", "lora": "LoRA", "none": "none"}


def write_subjects(task: Task, rows: Rows) -> None:
    """Write report.json, report.md, sheet.png, and objects.png if 3D objects were made."""
    config: EvaluateSubjectsConfig = task.config
    figures = {key: compare(rows, key) for key in (row_key(*row) for row in config.rows)}
    base = float(np.mean([row["found"]["base"]["identity"] for row in rows]))
    text = f"""# Subjects

{len(rows)} toybox subjects, {config.photos} photos each, {len(config.settings)} prompts, four views, DDIM
{config.steps} steps, guidance {config.guidance_scale:g}, seed {config.seed}. Identity is the mean cosine to the
subject's true views; that of the base prior, with the noun as prompt, is {base:.3f}. Differences are tuned minus base
with the same noise and cameras, their 95 % intervals bootstrapped over subjects. A score is the share of the probe's
correct answers: for prompts of the subject (compared with the base's for the class), of the class, and held-out ones.

{table(figures)}
{objects_text(rows, config)}"""
    write_png(task.folder / "sheet.png", sheet(config, task.folder / "subjects", rows))
    if config.objects is not None:
        write_png(task.folder / "objects.png", sheet(config, task.folder / "subjects", rows, "-3d"))
    write_report(task, "report", {"base_identity": base, "compared": figures, "subjects": list(rows)}, text)


def row_key(method: str, strength: float) -> str:
    """Return the name of a table row in files: "images" for strength 1, "images-0.6" for strength 0.6."""
    return method if strength == 1 else f"{method}-{strength:g}"


def row_name(key: str) -> str:
    """Return the name of a table row in reports: "class images", or "class images, strength 0.6"."""
    method, _, strength = key.partition("-")
    return f"{NAMES[method]}, strength {strength}" if strength else NAMES[method]


def sheet(config: EvaluateSubjectsConfig, folder: Path, rows: Rows, suffix: str = "") -> Array:
    """Return a contact sheet (H, W, 3), uint8, with one row for each subject.

    A row shows the photos, then four views each of: a sample of the base prior, samples of the tuned prior in the first
    two settings, and a sample of the tuned prior for the class (not for 3D objects).

    Args:
        folder: folder of all subjects.
        suffix: "-3d" for the sheet of 3D objects.
    """
    key, settings = row_key(*config.rows[0]), [f" {setting}" if setting else "" for setting in config.settings[:2]]
    shown = {f"base{suffix}-0": "{}, base"}
    shown |= {f"{key}{suffix}-{k}": f"[v]{setting}, {row_name(key)}" for k, setting in enumerate(settings)}
    if not suffix:
        shown[f"{key}-class-0"] = "{}, after tuning"
    cells, labels = [], []
    for row in rows:
        place, noun = folder / row["subject"], row["subject"].split("-", 1)[-1]
        photos = [read_rgb(path, half=True) for path in sorted((place / "photos").glob("*.png"))[:VIEWS]]
        cells.append(grid(photos, VIEWS))
        height = cells[-1].shape[0]  # objects may have larger images
        cells += [read_rgb(place / f"{name}.png", height=height) for name in shown]
        labels += [f"{noun}, photos", *(label.format(noun) for label in shown.values())]
    return grid(cells, 1 + len(shown), labels)


def read_rgb(path: Path, half: bool = False, height: int | None = None) -> Array:
    """Read an image (H, W, 3), uint8, at ``half`` its size (for photos), or scaled to ``height`` pixels."""
    image = load_image(path).convert("RGB").reduce(2 if half else 1)
    return np.asarray(image.resize((round(image.width * height / image.height), height)) if height else image)


def compare(rows: Rows, key: str) -> Json:
    """Compare the row ``key`` with the base prior: differences with 95 % intervals, shares and seconds, as JSON."""
    tuned, base = ([row["found"][name] for row in rows] for name in (key, "base"))

    def difference(ours: Sequence[Sequence[float]], name: str) -> tuple[float, float, float]:
        theirs = [found[name] for found in base]
        return mean_difference([np.mean(a) - np.mean(b) for a, b in zip(ours, theirs, strict=True)])

    def correct(name: str) -> Json:
        return share([answer[name] for found in tuned for answer in found["answers"]]).plain()

    return {
        "identity": float(np.mean([found["identity"] for found in tuned])),
        "identity_gain": difference([found["identity"] for found in tuned], "identity"),
        "own_change": difference([found["scores"] for found in tuned], "scores"),
        "class_change": difference([found["class"]["scores"] for found in tuned], "scores"),
        "held_out_change": difference([found["held_out"] for found in tuned], "held_out"),
        "order": correct("order"),
        "bound": correct("bound"),
        "seconds": median([found.get("seconds") for found in tuned]),
    }


def mean_difference(differences: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, lower and upper limit of the 95 % interval of differences. For one value, all three are equal."""
    value = float(np.mean(differences))
    return value, *(bootstrap(differences) or (value, value))


def table(figures: Mapping[str, Json]) -> str:
    """Return a Markdown table from the results of `compare` by row key."""
    heads = ["", "identity", "more than the base", "sides in order", "accessory in its colour",
             "its prompts, points", "class prompts, points", "held-out prompts, points", "seconds"]  # fmt: skip
    rows = []
    for key, found in figures.items():
        cells = [row_name(key), f"{found['identity']:.3f}", _interval(found["identity_gain"], 1, 3)]
        cells += [_share(Share.of(found["order"])), _share(Share.of(found["bound"]))]
        cells += [_interval(found[name], 100, 1) for name in ("own_change", "class_change", "held_out_change")]
        rows.append([*cells, "-" if found["seconds"] is None else f"{found['seconds']:.0f}"])
    return markdown_table(heads, rows)


def objects_text(rows: Rows, config: EvaluateSubjectsConfig) -> str:
    """Return the paragraph of the report on 3D objects; empty if none were made."""
    if config.objects is None:
        return ""
    key = row_key(*config.rows[0])
    base, tuned = ([row["found"][name]["objects"] for row in rows] for name in ("base", key))
    before, now = ([float(np.mean(found["identity"])) for found in side] for side in (base, tuned))
    gain = mean_difference([b - a for a, b in zip(before, now, strict=True)])
    ours, theirs = (share([answer["order"] for found in side for answer in found["answers"]]) for side in (tuned, base))
    return f"""
3D objects, made by {config.objects} with the prior tuned by {row_name(key)}: identity {np.mean(now):.3f}, more than the
base's by {_interval(gain, 1, 3)}; sides in order {_share(ours)},
of the base's {format_share(theirs)}.
"""


def _interval(found: Sequence[float], scale: float, digits: int) -> str:
    value, low, high = (f"{scale * one:+.{digits}f}" for one in found)
    return f"{value} ({low} to {high})"


def _share(figure: Share) -> str:
    return f"{format_share(figure)}, {format_limits(figure)}"
