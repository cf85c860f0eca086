"""The report page of a run, report.html: the asset to turn, pictures, plots, config; with whatever there is."""

from __future__ import annotations

import statistics
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.filesize import decimal as size

from threedgen.export.asset_folder import FOLDER
from threedgen.export.options import resize
from threedgen.geometry.images import GAP
from threedgen.run.disk import write_atomic, writing
from threedgen.run.folder import CHECKPOINTS, CONFIG, SUMMARY, run_folder
from threedgen.run.metrics import read_metrics
from threedgen.run.text import clean, duration, number, say

from .options import LIVE, ReportConfig
from .page import REMEDY, embedded, page
from .plots import drawable, plot
from .record import ROW, Record, as_float, as_int, read_record

PAGE = "report.html"
SCRIPTS = ("glb.js", "canvas.js", "scene.js", "gestures.js", "viewer.js", "frames.js")
VALIDATIONS = 6
"""Pictures of the way there, at most; evenly chosen, the last one among them."""
FILES_SHOWN = 60
ASSET = (
    # pattern of names in asset/, what it is; the first that fits counts
    ("asset.json", "what was made of what, and what the checker found"),
    ("*_collision_unreal.glb", "its collider, named as Unreal wants it"),
    ("*_collision_godot.glb", "its collider, named as Godot wants it"),
    ("*_LOD[1-9].glb", "a coarser level of it, with smaller textures"),
    ("*.glb", "the asset: opens in Blender, Unreal, Godot, three.js; in Unity with a glTF importer"),
    ("*_obj.zip", "the same as OBJ, with its material and textures, to be unzipped"),
    ("*.usdz", "the same as USDZ"),
)
WHAT = {
    "mesh.glb": "the dense surface, with vertex colours",
    "turntable.mp4": "film of one turn",
    "views.png": "sides of the result",
    "views.npz": "the same for programs",
    "preview.png": "what the prior sampled from the prompt",
    CONFIG: "the complete config; with --config it does the run again",
    "metrics.csv": "losses and times by step",
    "metrics.jsonl": "the same, written while it runs",
    SUMMARY: "time, memory, versions, seed",
    "text.safetensors": "the prompt as the prior reads it",
    "preview.safetensors": "the sampled views, for a resumed run",
    "sampled.png": "the picture as the model sees it, then the sampled views",
    "views.safetensors": "the same, for a resumed run",
    "job.json": "what a batch noted of it",
}
BELOW = {
    CHECKPOINTS: "a state of the run: it goes on from the last, and its asset is made again from it",
    "validation": "four sides of the object on the way, at the step that names it",
    "stages": "of a run that came before, from whose object this one began",
    LIVE: "of an asset that was asked for on the way, at the step that names its folder",
}
"""Folder of a run: what the files are that lie anywhere below it."""
PLOTS = (
    # key in metrics.jsonl, title, does its axis begin at zero?
    ("loss", "Loss", False),
    ("step_seconds", "Seconds a step", True),
    ("opacity", "Opacity, mean of the pictures", True),
    ("t", "Noise level", True),
)
MACHINE = (("Processor", "cpu"), ("Cores", "cores"), ("System", "platform"))

Rows = list[tuple[str, str]]


def run(config: ReportConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Carries out the task "report": makes the page of a run again; prints where it is."""
    folder = run_folder(config.run, "run")
    with writing(folder / PAGE, REMEDY):
        say(str(write_report(folder)))
    return 0


def write_report(folder: Path) -> Path:
    """Writes RUN/report.html, whole or not at all. Raises ConfigError for what is no generate run, and OSError."""
    path = folder / PAGE
    write_atomic(path, report(read_record(folder)))
    return path


def report(record: Record) -> str:
    """Makes the page of a run, as text."""
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
        columns=min(ROW, record.sides),
        gap=GAP,
        preview=embedded(record.file("preview.png")),
        validations=validations(record),
        plots=plots(record),
        facts=[(title, rows) for title, rows in facts(record) if rows],
        files=listed[:FILES_SHOWN],
        more_files=max(0, len(listed) - FILES_SHOWN),
    )


def headline(record: Record) -> list[str]:
    """Words the line under the prompt."""
    done, steps = record.steps, record.max_steps
    of = "" if steps in (None, done) else f" of {steps}"
    parts = [f"seed {record.seed}", *([] if done is None else [f"{done}{of} steps"])]
    return parts if record.seconds is None else [*parts, duration(record.seconds)]


def validations(record: Record) -> list[tuple[str, Markup]]:
    """Chooses pictures from while it was optimised, as (step, data URI)."""
    found = sorted(record.folder.glob("validation/[0-9]*.png"))
    count = min(VALIDATIONS, len(found))
    chosen = [found[(k + 1) * len(found) // count - 1] for k in range(count)]
    pictures = [(path.stem.lstrip("0") or "0", embedded(path)) for path in chosen]
    return [(step, uri) for step, uri in pictures if uri]


def plots(record: Record) -> list[tuple[str, Markup]]:
    """Plots each quantity that was logged at two steps or more, as (title, SVG)."""
    lines, drawn = read_metrics(record.folder), []
    steps = [step for line in lines if (step := as_float(line["step"])) is not None and drawable(step)]
    for key, title, from_zero in PLOTS:
        pairs = [(as_float(line["step"]), as_float(line.get(key))) for line in lines]
        points = sorted((s, v) for s, v in pairs if s is not None and v is not None and drawable(s) and drawable(v))
        if len(points) > 1:
            drawn.append((title, plot(title, points, (min(steps), max(steps)), from_zero)))
    return drawn


def facts(record: Record) -> list[tuple[str, Rows]]:
    """Collects tables of figures; a table without rows says nothing."""
    counts = [("Triangles", as_int(record.metadata("triangles"))), ("Vertices", as_int(record.metadata("vertices")))]
    made = [
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
        ("Made with", [(name, str(value)) for name, value in made if value]),
        ("Time and memory", costs(record)),
        ("Machine", [(name, str(value)) for name, value in machine if value]),
        ("Versions", [(str(k), str(v)) for k, v in versions.items()] if isinstance(versions, dict) else []),
    ]


def asset_rows(metadata: dict[str, Any], folder: Path) -> Rows:
    """Words what asset.json says: triangles of each level, texels, metres, what was found. folder: of the run."""
    levels, metres, findings, khronos = (metadata.get(key) for key in ("levels", "size_m", "findings", "khronos"))
    counts = [as_int(count) for count in levels.values()] if isinstance(levels, dict) else []
    rows = [("Triangles", ", ".join(f"{count:,}" for count in counts if count is not None))]
    if (across := as_int(metadata.get("texture"))) is not None:
        rows.append(("Textures", f"{across} x {across}"))
    told = [as_float(metres.get(side)) for side in ("wide", "high", "deep")] if isinstance(metres, dict) else []
    sizes = [number(edge) for edge in told if edge is not None]
    if len(sizes) == 3:
        rows.append(("Wide, high, deep", f"{' x '.join(sizes)} m"))
    if isinstance(metadata.get("height"), str):
        rows += [("Height", metadata["height"]), ("Another height", resize(folder, metadata.get("preset")))]
    if isinstance(findings, dict):
        found = sum(len(part) for part in findings.values() if isinstance(part, list))
        rows.append(("Checkers", f"{found} found" if found else "nothing found"))
    if isinstance(khronos, str):
        rows.append(("Khronos validator", khronos))
    return [(name, value) for name, value in rows if value]


def costs(record: Record) -> Rows:
    """Words where the time went, and the most memory."""
    parts = record.metadata("seconds_of")
    times = [(str(k).capitalize(), as_float(v)) for k, v in parts.items()] if isinstance(parts, dict) else []
    rows = [(name, duration(seconds)) for name, seconds in [*times, ("Altogether", record.seconds)] if seconds]
    paces = [pace for line in read_metrics(record.folder) if (pace := as_float(line.get("step_seconds"))) is not None]
    if paces:
        rows.append(("A step, median", f"{number(statistics.median(paces))} s"))
    memory = as_float(2**20 * (as_float(record.metadata("peak_memory_mib")) or 0.0))
    rows += [("Peak memory", size(int(memory)))] if memory else []
    return rows + ([("Ended", f"{record.ended:%Y-%m-%d %H:%M} UTC")] if record.summary else [])


def files(folder: Path) -> list[tuple[str, int, str]]:
    """Lists (path below the folder, bytes, what it is) of each file but the page itself; the results first."""
    page_file = folder / PAGE
    paths = [path for path in folder.rglob("[!.]*") if path.is_file() and path.suffix != ".tmp" and path != page_file]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    found = [(name, length, describe_file(name)) for name, length in sizes.items()]
    order = {name: k for k, name in enumerate(WHAT)}
    return sorted(found, key=lambda row: (not row[0].startswith(f"{FOLDER}/"), order.get(row[0], len(order)), row[0]))


def describe_file(relative: str) -> str:
    """Says what a file of a run is, by its path in the run's folder; "" for one that the project does not write."""
    folder, _, name = relative.rpartition("/")
    if folder == FOLDER:
        return next((text for pattern, text in ASSET if fnmatchcase(name, pattern)), "")
    return WHAT.get(relative) or BELOW.get(folder.partition("/")[0], "")
