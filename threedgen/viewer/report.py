"""The report page of a run, report.html: the asset to turn, pictures, plots, config; with whatever there is."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

from markupsafe import Markup

from threedgen.cli import say
from threedgen.images import GAP
from threedgen.ledger import read_metrics
from threedgen.readable import clean, duration, number, size
from threedgen.runs import run_folder, write_atomic

from .options import ReportConfig
from .page import embedded, making, page
from .plots import drawable, plot
from .record import ROW, Record, figure, read_record, whole

PAGE = "report.html"
SCRIPTS = ("glb.js", "scene.js", "viewer.js", "frames.js")
VALIDATIONS = 6
"""Pictures of the way there, at most; evenly chosen, the last one among them."""
FILES_SHOWN = 60
WHAT = {
    "mesh.glb": "the asset: opens in Blender, Unity, Unreal, Godot, three.js",
    "turntable.mp4": "film of one turn",
    "views.png": "sides of the result",
    "preview.png": "what the prior sampled from the prompt",
    "config.yaml": "the complete config; with --config it does the run again",
    "metrics.csv": "losses and times by step",
    "metrics.jsonl": "the same, written while it runs",
    "summary.json": "time, memory, versions, seed",
    "text.safetensors": "the prompt as the prior reads it",
    "preview.safetensors": "the sampled views, for a resumed run",
}
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
    """The task "report": make the page of a run again; prints where it is."""
    folder = run_folder(config.run, "run")
    with making(folder / PAGE):
        say(str(write_report(folder)))
    return 0


def write_report(folder: Path) -> Path:
    """RUN/report.html, whole or not at all. Raises ConfigError for what is no generate run, and OSError."""
    path = folder / PAGE
    write_atomic(path, report(read_record(folder)))
    return path


def report(record: Record) -> str:
    """The page as text."""
    listed = files(record.folder)
    return page(
        "report.html",
        SCRIPTS,
        title=clean(record.prompt)[:80],
        record=record,
        headline=headline(record),
        mesh=embedded(record.file("mesh.glb")),
        mesh_file=record.file("mesh.glb"),
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
    """The line under the prompt."""
    done, steps = record.steps, record.max_steps
    parts = [f"seed {record.seed}"]
    if done is not None:
        parts.append(f"{done} steps" if done == steps or steps is None else f"{done} of {steps} steps")
    if record.seconds is not None:
        parts.append(duration(record.seconds))
    return parts


def validations(record: Record) -> list[tuple[str, Markup]]:
    """Pictures from while it was optimised, as (step, data URI)."""
    found = sorted(record.folder.glob("validation/[0-9]*.png"))
    count = min(VALIDATIONS, len(found))
    chosen = [found[(k + 1) * len(found) // count - 1] for k in range(count)]
    pictures = [(path.stem.lstrip("0") or "0", embedded(path)) for path in chosen]
    return [(step, uri) for step, uri in pictures if uri]


def plots(record: Record) -> list[tuple[str, Markup]]:
    """(title, SVG) of each quantity that was logged at two steps or more."""
    lines, drawn = read_metrics(record.folder), []
    steps = [step for line in lines if (step := figure(line["step"])) is not None and drawable(step)]
    for key, title, from_zero in PLOTS:
        pairs = [(figure(line["step"]), figure(line.get(key))) for line in lines]
        points = sorted((s, v) for s, v in pairs if s is not None and v is not None and drawable(s) and drawable(v))
        if len(points) > 1:
            drawn.append((title, plot(title, points, (min(steps), max(steps)), from_zero)))
    return drawn


def facts(record: Record) -> list[tuple[str, Rows]]:
    """Tables of figures; a table without rows says nothing."""
    counts = [("Triangles", whole(record.told("triangles"))), ("Vertices", whole(record.told("vertices")))]
    made = [
        ("Prior", record.option("prior", "weights")),
        ("Distillation", record.option("distillation", "name")),
        ("Field", record.option("field", "name")),
        ("Seed", record.seed),
    ]
    machine = [(name, record.told("environment", key)) for name, key in MACHINE]
    versions = record.told("environment", "versions")
    return [
        ("Asset", [(name, f"{count:,}") for name, count in counts if count is not None]),
        ("Made with", [(name, str(value)) for name, value in made if value]),
        ("Time and memory", costs(record)),
        ("Machine", [(name, str(value)) for name, value in machine if value]),
        ("Versions", [(str(k), str(v)) for k, v in versions.items()] if isinstance(versions, dict) else []),
    ]


def costs(record: Record) -> Rows:
    """Where the time went, and the most memory."""
    parts = record.told("seconds_of")
    times = [(str(k).capitalize(), figure(v)) for k, v in parts.items()] if isinstance(parts, dict) else []
    rows = [(name, duration(seconds)) for name, seconds in [*times, ("Altogether", record.seconds)] if seconds]
    paces = [pace for line in read_metrics(record.folder) if (pace := figure(line.get("step_seconds"))) is not None]
    if paces:
        rows.append(("A step, median", f"{number(statistics.median(paces))} s"))
    memory = figure(record.told("peak_memory_mib"))
    rows += [("Peak memory", size(memory * 2**20))] if memory else []
    return rows + ([("Ended", f"{record.ended:%Y-%m-%d %H:%M} UTC")] if record.summary else [])


def files(folder: Path) -> list[tuple[str, int, str]]:
    """(path below the folder, bytes, what it is) of each file but the page itself; the results first."""
    found = []
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(where, name)
            relative = path.relative_to(folder).as_posix()
            if relative != PAGE and path.suffix != ".tmp" and path.is_file():
                found.append((relative, path.stat().st_size, WHAT.get(relative, "")))
    order = list(WHAT)
    found.sort(key=lambda row: (order.index(row[0]) if row[0] in order else len(order), row[0]))
    return found
