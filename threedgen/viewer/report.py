"""Task `report`: write report.html, a page of a run with 3D view, images, plots and config."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from rich.filesize import decimal as size

from threedgen.export.asset_folder import FOLDER
from threedgen.export.options import resize_command
from threedgen.geometry.images import SHEET_GAP
from threedgen.run.arrays import evenly_spaced
from threedgen.run.disk import Tree, write_atomic, writing
from threedgen.run.folder import run_folder
from threedgen.run.metrics import read_metrics
from threedgen.run.text import clean, duration, number, say

from .options import ReportConfig
from .page import SCRIPTS, asset_variables, embedded, page
from .record import VIEWS_PER_ROW, Record, read_record

PAGE = "report.html"
MAX_VALIDATIONS = 6
MAX_FILES = 60
PLOTS = (
    # key in metrics.jsonl, title of the plot, whether the value axis starts at zero
    ("loss", "Loss", False),
    ("step_seconds", "Seconds per step", True),
    ("opacity", "Opacity, mean of the images", True),
    ("t", "Noise level", True),
)
WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 28
MAX_TICKS, MAX_POINTS = 5, 240  # maximum number of axis ticks, and of points of a curve (a longer one is averaged)
LOG_RATIO = 30.0  # ratio of maximum to minimum above which positive values get a logarithmic axis

Rows = list[tuple[str, str]]


def run(config: ReportConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task `report`: rewrite the report page of a run and print its path. Returns exit code 0.

    `resume` and `quiet` are arguments of all tasks; they have no effect here.
    """
    folder = run_folder(config.run, "run")
    with writing(folder / PAGE):
        say(str(write_report(folder)))
    return 0


def write_report(folder: Path) -> Path:
    """Write report.html atomically into the folder of a run; return its path.

    Raises ConfigError if the config or the summary of the run is missing or damaged.
    """
    path = folder / PAGE
    write_atomic(path, report(read_record(folder)))
    return path


def report(record: Record) -> str:
    listed = files(record.folder)
    return page(
        "report.html",
        SCRIPTS,
        title=clean(record.prompt)[:80],
        record=record,
        headline=headline(record),
        **asset_variables(record.folder, record.model, record.splats),
        turntable=embedded(record.file("turntable.mp4")),
        views=embedded(record.file("views.png")),
        columns=min(VIEWS_PER_ROW, record.n_views),
        gap=SHEET_GAP,
        preview=embedded(record.file("preview.png")),
        validations=validations(record),
        images=logged_images(record),
        plots=plots(record),
        facts=[(title, rows) for title, rows in facts(record) if rows],
        files=listed[:MAX_FILES],
        more_files=max(0, len(listed) - MAX_FILES),
    )


def headline(record: Record) -> list[str]:
    steps, seconds = record.summary.steps, record.summary.seconds
    of = "" if record.max_steps in (None, steps) else f" of {record.max_steps}"
    parts = [f"seed {record.option('seed')}", *([] if steps is None else [f"{steps}{of} steps"])]
    return parts if seconds is None else [*parts, duration(seconds)]


def validations(record: Record) -> list[tuple[str, Markup]]:
    """Return up to MAX_VALIDATIONS validation images of a run, evenly chosen, as pairs (training step, data URI)."""
    found = sorted(record.folder.glob("validation/[0-9]*.png"))
    paths = [found[k] for k in evenly_spaced(len(found), MAX_VALIDATIONS)]
    return [(path.stem.lstrip("0") or "0", uri) for path in paths if (uri := embedded(path))]


def logged_images(record: Record) -> list[tuple[str, Markup]]:
    """Return pairs ("NAME-STEP", data URI): for each NAME, the newest of the logged images images/NAME-STEP.png."""
    newest = {path.stem.rpartition("-")[0]: path for path in sorted(record.folder.glob("images/*-[0-9]*.png"))}
    return [(path.stem, uri) for path in newest.values() if (uri := embedded(path))]


def facts(record: Record) -> list[tuple[str, Rows]]:
    """Return the tables of the report page as pairs (title, rows). A row is a pair (name, text).

    The tables are asset, dense mesh, settings, time and memory, machine, and versions. A table may have no rows.
    """
    summary, machine = record.summary, record.summary.environment
    tables: dict[str, Tree] = {
        "Asset": asset_facts(record),
        "Dense mesh": {"Triangles": summary.triangles, "Vertices": summary.vertices},
        "Settings": {
            "Prior": record.option("prior", "weights"),
            "Distillation": record.option("distillation", "name"),
            "Field": record.option("field", "name"),
            "Seed": record.option("seed"),
        },
        "Time and memory": costs(record),
        "Machine": {"Processor": machine.cpu, "Cores": machine.cores, "System": machine.platform},
        "Versions": machine.versions,
    }
    return [(title, [(k, str(v)) for k, v in rows.items() if v not in (None, "")]) for title, rows in tables.items()]


def asset_facts(record: Record) -> dict[str, str]:
    """Return the table about the asset as a dict from name, such as "Triangles", to text. Unknown values are ""."""
    asset, sizes = record.asset, [number(edge) for edge in record.asset.size_m.values()]
    return {
        "Triangles": ", ".join(f"{count:,}" for count in asset.levels.values()),
        "Textures": f"{asset.texture} x {asset.texture}" if asset.texture else "",
        "Width, height, depth": f"{' x '.join(sizes)} m" if sizes else "",
        "Height": asset.height,
        "Export with another height": resize_command(record.folder) if asset.height else "",
        "Khronos validator": asset.khronos,
    }


def costs(record: Record) -> dict[str, str]:
    summary = record.summary
    rows = {name.capitalize(): duration(seconds) for name, seconds in summary.seconds_of.items() if seconds}
    rows["Total"] = duration(summary.seconds) if summary.seconds else ""
    paces = [pace for line in read_metrics(record.folder) if (pace := _plottable(line.get("step_seconds"))) is not None]
    rows["Step, median"] = f"{number(statistics.median(paces))} s" if paces else ""
    rows["Peak memory"] = size(int(2**20 * summary.peak_memory_mib)) if summary.peak_memory_mib else ""
    return rows | {"Ended": f"{record.ended:%Y-%m-%d %H:%M} UTC" if summary.ended else ""}


def files(folder: Path) -> list[tuple[str, int]]:
    """Return (path relative to `folder`, size in bytes) of the files of a run, without its report page.

    Hidden and temporary files, and those in hidden folders, are left out. Files of the asset (subfolder asset/) are
    first, then files directly in `folder`, then files in other subfolders.
    """
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp" and path != folder / PAGE]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    shown = [item for item in sizes.items() if "/." not in f"/{item[0]}"]
    return sorted(shown, key=lambda item: (not item[0].startswith(f"{FOLDER}/"), "/" in item[0], item[0]))


def plots(record: Record) -> list[tuple[str, Markup]]:
    """Return pairs (title, SVG): a plot of each quantity in PLOTS, such as the loss, logged at two or more steps."""
    lines, result = read_metrics(record.folder), []
    steps = [float(line["step"]) for line in lines]
    for key, title, from_zero in PLOTS:
        pairs = [(step, _plottable(line.get(key))) for step, line in zip(steps, lines, strict=True)]
        points = sorted((step, value) for step, value in pairs if value is not None)
        if len(points) > 1:
            result.append((title, plot(title, points, (min(steps), max(steps)), from_zero)))
    return result


def _plottable(value: object) -> float | None:
    # None for non-numbers and for absurdly large numbers
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        return None
    return float(value)


def plot(title: str, points: Sequence[tuple[float, float]], steps: tuple[float, float], from_zero: bool) -> Markup:
    """Return a line plot over training steps as SVG. Colours and fonts are set by page.css.

    Args:
        title: text for screen readers.
        points: two or more (step, value), sorted by step.
        steps: first and last step of the horizontal axis.
        from_zero: whether the vertical axis includes 0. Otherwise it is logarithmic if all values are positive and
            their maximum exceeds LOG_RATIO times their minimum.
    """
    values = np.array([value for _, value in points])
    log = bool(values.min() > 0 and values.max() / values.min() > LOG_RATIO and not from_zero)
    curve = np.array([block.mean(axis=0) for block in np.array_split(points, min(len(points), MAX_POINTS))])
    scaled = np.log10(values) if log else values
    low, high = float(scaled.min()), float(scaled.max())
    low = min(low, 0.0) if from_zero else low
    room = max(0.05 * (high - low), 1e-6 * abs(high), 1e-30)
    low, high = low if from_zero else low - room, high + room
    first, last = steps[0], max(steps[1], steps[0] + 1)

    def across(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def down(height: float) -> float:
        return HEIGHT - BOTTOM - (height - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in ticks(low, high):
        y, label = f"{down(tick):.1f}", number(10**tick if log else tick)
        parts.append(f'<path class="rule" d="M{LEFT},{y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y}" dy="4" text-anchor="end">{label}</text>')
    for tick in ticks(first, last):
        anchor = "end" if across(tick) > WIDTH - RIGHT - 20 else "middle"
        x = f"{across(tick):.1f}"
        parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - 8}" text-anchor="{anchor}">{tick:g}</text>')
    line = [f"{across(step):.1f},{down(math.log10(value) if log else value):.1f}" for step, value in curve.tolist()]
    x, y = line[-1].split(",")
    parts.append(f'<path class="line" d="M{" ".join(line)}"/><circle class="end" cx="{x}" cy="{y}" r="3"/>')
    (first_step, start), (last_step, end) = points[0], points[-1]
    label = escape(f"{title}: {number(start)} at step {first_step:g}, {number(end)} at step {last_step:g}")
    head = f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return Markup(head + "".join(parts) + "</svg>")


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers in [low, high] for an axis, at most MAX_TICKS: multiples of 1, 2 or 5 times 10^n."""
    unit = 10.0 ** math.floor(math.log10((high - low) / MAX_TICKS))
    for step in (unit, 2 * unit, 5 * unit, 10 * unit, 20 * unit):
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first < MAX_TICKS:
            break
    return [k * step for k in range(first, last + 1)]
