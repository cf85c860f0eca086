"""Task `report`: write report.html, a page of a run with 3D view, images, plots and config. It marks missing parts."""

import statistics
from fnmatch import fnmatchcase
from pathlib import Path

from markupsafe import Markup
from rich.filesize import decimal as size

from threedgen.export.asset_folder import FOLDER
from threedgen.export.options import resize_command
from threedgen.geometry.images import SHEET_GAP
from threedgen.run.disk import Tree, write_atomic, writing
from threedgen.run.folder import CHECKPOINTS, CONFIG, SUMMARY, run_folder
from threedgen.run.metrics import read_metrics
from threedgen.run.text import clean, duration, number, say

from .options import LIVE, ReportConfig
from .page import embedded, page
from .plots import drawable, plot
from .record import VIEWS_PER_ROW, Record, as_float, as_int, read_record

PAGE = "report.html"
SCRIPTS = ("glb.js", "canvas.js", "scene.js", "gestures.js", "viewer.js", "frames.js")
MAX_VALIDATIONS = 6
MAX_FILES = 60
ASSET_FILES = (
    # pattern of a file name in asset/, and description; the first pattern that matches counts
    ("asset.json", "manifest: levels of detail, sizes, checksums, findings of the checkers"),
    ("*_collision_unreal.glb", "collider, named for Unreal"),
    ("*_collision_godot.glb", "collider, named for Godot"),
    ("*_LOD[1-9].glb", "coarser level of detail, with smaller textures"),
    ("*.glb", "asset: opens in Blender, Unreal, Godot, three.js; in Unity with a glTF importer"),
    ("*_obj.zip", "asset as a zipped OBJ with material and textures"),
    ("*.usdz", "asset as USDZ"),
)
RUN_FILES = {
    "mesh.glb": "dense mesh with vertex colours",
    "turntable.mp4": "turntable video",
    "views.png": "views of the result",
    "views.npz": "views of the result and their cameras, as arrays",
    "preview.png": "views sampled by the prior",
    CONFIG: "complete config; --config config.yaml repeats the run",
    "metrics.csv": "losses and times per step",
    "metrics.jsonl": "losses and times per step, written during the run",
    SUMMARY: "time, memory, versions, seed",
    "text.safetensors": "encoded prompt",
    "preview.safetensors": "views sampled by the prior, used to resume",
    "sampled.png": "input image of the model and the sampled views",
    "views.safetensors": "input image and sampled views, used to resume",
    "job.json": "record of the batch that started this run",
}
SUBFOLDERS = {
    CHECKPOINTS: "checkpoint: used to resume the run and to export again",
    "validation": "four views of the object at this step",
    "images": "image logged at this step",
    "stages": "file of an earlier run whose object this run started from",
    LIVE: "file of an asset exported from the live view at this step",
}
"""Subfolder of a run -> description of each file in the subfolder."""
PLOTS = (
    # key in metrics.jsonl, title of the plot, whether the value axis starts at zero
    ("loss", "Loss", False),
    ("step_seconds", "Seconds per step", True),
    ("opacity", "Opacity, mean of the images", True),
    ("t", "Noise level", True),
)
MACHINE = (("Processor", "cpu"), ("Cores", "cores"), ("System", "platform"))

Rows = list[tuple[str, str]]


def run(config: ReportConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task `report`: rewrite the page of a run and print its path. Returns exit code 0."""
    folder = run_folder(config.run, "run")
    with writing(folder / PAGE):
        say(str(write_report(folder)))
    return 0


def write_report(folder: Path) -> Path:
    """Write report.html atomically into the folder of a run; return its path.

    Raises ConfigError if the folder is not a run of the tasks with a report page, OSError if the write fails.
    """
    path = folder / PAGE
    write_atomic(path, report(read_record(folder)))
    return path


def report(record: Record) -> str:
    """Return the HTML of a run's report page."""
    listed = files(record.folder)
    return page(
        "report.html",
        SCRIPTS,
        title=clean(record.prompt)[:80],
        record=record,
        headline=headline(record),
        model=embedded(record.model),
        model_file=record.model and record.model.relative_to(record.folder).as_posix(),
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
    """Return the texts for the line under the prompt: seed, number of steps, duration."""
    steps, total = record.steps, record.max_steps
    of = "" if total in (None, steps) else f" of {total}"
    parts = [f"seed {record.seed}", *([] if steps is None else [f"{steps}{of} steps"])]
    return parts if record.seconds is None else [*parts, duration(record.seconds)]


def validations(record: Record) -> list[tuple[str, Markup]]:
    """Return up to MAX_VALIDATIONS evenly spaced validation images, including the last, as (step, data URI)."""
    found = sorted(record.folder.glob("validation/[0-9]*.png"))
    count = min(MAX_VALIDATIONS, len(found))
    paths = [found[(k + 1) * len(found) // count - 1] for k in range(count)]
    images = [(path.stem.lstrip("0") or "0", embedded(path)) for path in paths]
    return [(step, uri) for step, uri in images if uri]


def logged_images(record: Record) -> list[tuple[str, Markup]]:
    """Return the newest logged image of each name, as (NAME-STEP, data URI)."""
    newest = {path.stem.rpartition("-")[0]: path for path in sorted(record.folder.glob("images/*-[0-9]*.png"))}
    return [(path.stem, uri) for path in newest.values() if (uri := embedded(path))]


def plots(record: Record) -> list[tuple[str, Markup]]:
    """Return a plot of each quantity in PLOTS that was logged at two or more steps, as (title, SVG)."""
    lines, result = read_metrics(record.folder), []
    steps = [step for line in lines if (step := as_float(line["step"])) is not None and drawable(step)]
    for key, title, from_zero in PLOTS:
        pairs = [(as_float(line["step"]), as_float(line.get(key))) for line in lines]
        points = sorted((s, v) for s, v in pairs if s is not None and v is not None and drawable(s) and drawable(v))
        if len(points) > 1:
            result.append((title, plot(title, points, (min(steps), max(steps)), from_zero)))
    return result


def facts(record: Record) -> list[tuple[str, Rows]]:
    """Return the tables of the page as (title, rows). A table may have no rows."""
    counts = [("Triangles", as_int(record.metadata("triangles"))), ("Vertices", as_int(record.metadata("vertices")))]
    settings = [
        ("Prior", record.option("prior", "weights")),
        ("Distillation", record.option("distillation", "name")),
        ("Field", record.option("field", "name")),
        ("Seed", record.seed),
    ]
    machine = [(name, record.metadata("environment", key)) for name, key in MACHINE]
    versions = record.metadata("environment", "versions")
    return [
        ("Asset", asset_rows(record.asset, record.folder)),
        ("Dense mesh", [(name, f"{count:,}") for name, count in counts if count is not None]),
        ("Settings", [(name, str(value)) for name, value in settings if value]),
        ("Time and memory", costs(record)),
        ("Machine", [(name, str(value)) for name, value in machine if value]),
        ("Versions", [(str(k), str(v)) for k, v in versions.items()] if isinstance(versions, dict) else []),
    ]


def asset_rows(metadata: Tree, folder: Path) -> Rows:
    """Return table rows (name, value) from `metadata`, the content of asset.json, for the run in `folder`."""
    levels, metres, khronos = (metadata.get(key) for key in ("levels", "size_m", "khronos"))
    counts = [as_int(count) for count in levels.values()] if isinstance(levels, dict) else []
    rows = [("Triangles", ", ".join(f"{count:,}" for count in counts if count is not None))]
    if (texels := as_int(metadata.get("texture"))) is not None:
        rows.append(("Textures", f"{texels} x {texels}"))
    edges = [as_float(metres.get(side)) for side in ("wide", "high", "deep")] if isinstance(metres, dict) else []
    sizes = [number(edge) for edge in edges if edge is not None]
    if len(sizes) == 3:
        rows.append(("Width, height, depth", f"{' x '.join(sizes)} m"))
    if isinstance(metadata.get("height"), str):
        rows += [
            ("Height", metadata["height"]),
            ("Export with another height", resize_command(folder, metadata.get("preset"))),
        ]
    if isinstance(khronos, str):
        rows.append(("Khronos validator", khronos))
    return [(name, value) for name, value in rows if value]


def costs(record: Record) -> Rows:
    """Return table rows (name, value) of durations and peak memory."""
    parts = record.metadata("seconds_of")
    times = [(str(k).capitalize(), as_float(v)) for k, v in parts.items()] if isinstance(parts, dict) else []
    rows = [(name, duration(seconds)) for name, seconds in [*times, ("Total", record.seconds)] if seconds]
    paces = [pace for line in read_metrics(record.folder) if (pace := as_float(line.get("step_seconds"))) is not None]
    if paces:
        rows.append(("Step, median", f"{number(statistics.median(paces))} s"))
    memory = as_float(2**20 * (as_float(record.metadata("peak_memory_mib")) or 0.0))
    rows += [("Peak memory", size(int(memory)))] if memory else []
    return rows + ([("Ended", f"{record.ended:%Y-%m-%d %H:%M} UTC")] if record.summary else [])


def files(folder: Path) -> list[tuple[str, int, str]]:
    """Return (relative path, size in bytes, description) of each file of a run except the page, asset files first."""
    page_file = folder / PAGE
    paths = [path for path in folder.rglob("[!.]*") if path.is_file() and path.suffix != ".tmp" and path != page_file]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    found = [(name, length, describe_file(name)) for name, length in sizes.items()]
    order = {name: k for k, name in enumerate(RUN_FILES)}
    return sorted(found, key=lambda row: (not row[0].startswith(f"{FOLDER}/"), order.get(row[0], len(order)), row[0]))


def describe_file(relative: str) -> str:
    """Return the description of a file, given its path relative to the run's folder; "" for an unknown file."""
    folder, _, name = relative.rpartition("/")
    if folder == FOLDER:
        return next((text for pattern, text in ASSET_FILES if fnmatchcase(name, pattern)), "")
    return RUN_FILES.get(relative) or SUBFOLDERS.get(folder.partition("/")[0], "")
