"""Task `gallery`: write gallery.html, a page with one card for each run below a folder, newest first."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup
from rich.filesize import decimal

from threedgen.config.errors import ConfigError
from threedgen.export.asset_folder import SET
from threedgen.geometry.image_file import load_image
from threedgen.geometry.images import SHEET_GAP
from threedgen.run.disk import Tree, write_atomic, writing
from threedgen.run.folder import CONFIG, stored_config, user_path
from threedgen.run.text import duration, number, say, visible

from .options import GalleryConfig
from .page import data_uri, jpeg, link, page
from .record import TASKS, VIEWS_PER_ROW, Record, read_record
from .report import PAGE

logger = logging.getLogger(__name__)
NAME = "gallery.html"
THREE_QUARTER = 45.0  # azimuth of the image on a card, degrees; 0 is the front
CARD_PIXELS = 320  # maximum width and height of the image on a card, in pixels


def run(config: GalleryConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task `gallery`: write the page of all runs below a folder and print its path. Returns exit code 0.

    `resume` and `quiet` are arguments of all tasks; they have no effect here.
    """
    folder = user_path(config.runs, "runs")
    path = folder / NAME if config.out is None else user_path(config.out, "out")
    if config.out is not None and (path.is_dir() or path.suffix.lower() not in (".html", ".htm")):
        path /= NAME
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        text, broken = gallery(folder, path.parent)
        write_atomic(path, text)
    for reason in broken:
        logger.warning("skipped: %s", reason)
    say(str(path))
    return 0


def gallery(folder: Path, home: Path) -> tuple[str, list[str]]:
    """Return the HTML of the gallery of all runs below `folder`, and an error message for each run that is unreadable.

    Links are relative to `home`, the folder of the page.
    """
    found, broken = records(folder)
    cards = [card(record, home) for record in found if record.has_result]
    unfinished = [f"{record.folder}: {record.state}" for record in found if not record.has_result]
    title = folder.resolve().name or str(folder)
    values: Tree = {"title": title, "cards": cards, "unfinished": unfinished, "broken": broken}
    values["set_file"] = SET if (home / SET).is_file() else ""
    text = page("gallery.html", ("gallery.js",), **values)
    return text, broken


def records(folder: Path, tasks: Sequence[str] = TASKS) -> tuple[list[Record], list[str]]:
    """Return the runs below a folder, newest first, and an error message for each run that is unreadable.

    Only runs whose task is one of `tasks` are read; the default `TASKS` are the tasks that make one object per run.
    """
    found, broken = [], []
    for where, folders, names in os.walk(folder):
        folders.sort()
        try:
            if CONFIG in names and (stored_config(Path(where)) or {}).get("task") in tasks:
                folders.clear()
                found.append(read_record(Path(where), tasks))
        except ConfigError as error:
            broken.append(str(error))
    return sorted(found, key=lambda record: record.ended, reverse=True), broken


def card(record: Record, home: Path) -> Tree:
    """Return the template variables for the card of a run on the gallery page: image, link, texts and numbers.

    The link to the report page is relative to `home`, the folder of the gallery page; None if there is no report.
    """
    report, seconds = record.file(PAGE), record.summary.seconds
    facts = [record.method, f"seed {record.option('seed')}", duration(seconds) if seconds else ""]
    facts = [fact for fact in (*facts, f"{record.ended:%Y-%m-%d}") if fact]
    return {
        "record": record,
        "image": best_image(record),
        "link": relative_url(report, home) if report else None,
        "facts": facts,
        "figures": figures(record),
        "search_text": visible(" ".join([record.prompt, record.state, *facts])).lower(),
    }


def figures(record: Record) -> dict[str, str]:
    """Return the numbers on the card of a run as a dict from name to text; unknown numbers are "".

    The names are "triangles", "texture", "height", "file" (size of the asset's first file), "time" and "memory".
    """
    asset, summary = record.asset, record.summary
    triangles = next(iter(asset.levels.values()), summary.triangles)
    high, file_bytes = asset.size_m.get("high"), next(iter(asset.files.values()), None)
    return {
        "triangles": "" if triangles is None else f"{triangles:,}",
        "texture": str(asset.texture or ""),
        "height": "" if high is None else f"{number(high)} m",
        "file": "" if file_bytes is None else decimal(file_bytes),
        "time": duration(summary.seconds) if summary.seconds else "",
        "memory": "" if summary.peak_memory_mib is None else f"{summary.peak_memory_mib:.0f} MiB",
    }


def relative_url(path: Path, home: Path) -> str:
    """Return the URL of a file relative to the folder `home`, so that file and folder can be moved together.

    If the file is on another drive of Windows than `home`, the URL is absolute.
    """
    try:
        return link(os.path.relpath(path, home))
    except ValueError:  # on another Windows drive
        return path.resolve().as_uri()


def best_image(record: Record) -> Markup | None:
    """Return one view of a run as a data URI (JPEG), for HTML; None if the run has no readable image of views."""
    data = best_jpeg(record)
    return None if data is None else data_uri(data, ".jpg")


def best_jpeg(record: Record) -> bytes | None:
    """Return a small JPEG with one view of a run; None if the run has no readable contact sheet (grid of views).

    The view is cropped from a sheet of the result, or else of the newest validation, or else of the prior's samples.
    """
    for path, columns, rows, index in contact_sheets(record):
        try:
            sheet = load_image(path)
        except ConfigError:  # damaged: try the next sheet
            continue
        width, height = (sheet.width - SHEET_GAP) // columns, (sheet.height - SHEET_GAP) // rows
        left, top = SHEET_GAP + index % columns * width, SHEET_GAP + index // columns * height
        right, bottom = left + max(1, width - SHEET_GAP), top + max(1, height - SHEET_GAP)
        image = sheet.convert("RGB").crop((left, top, right, bottom))
        image.thumbnail((CARD_PIXELS, CARD_PIXELS))
        return jpeg(image)
    return None


def contact_sheets(record: Record) -> Iterator[tuple[Path, int, int, int]]:
    """Yield (path, columns, rows, index) of the contact sheets of a run: image files with a grid of views.

    Sheets of the result come first, then validation images, newest first, then views sampled by the prior. A sheet has
    `columns` x `rows` views. `index` is the cell, counted row by row from 0, of the view that represents the run: in
    views.png the one between front and side, in others the first.
    """
    if sheet := record.file("after.png"):  # views of a textured mesh: two rings, the first one from above
        yield sheet, 3, 4, 0
    if views := record.file("views.png"):
        index = three_quarter_view(record.n_views, record.option("result", "turntable", "azimuth"))
        yield views, min(VIEWS_PER_ROW, record.n_views), -(-record.n_views // VIEWS_PER_ROW), index
    for path in sorted(record.folder.glob("validation/*.png"), reverse=True):
        yield path, VIEWS_PER_ROW, 1, 0
    if preview := record.file("preview.png"):
        yield preview, record.count("camera", "n_view") or 4, 1, 0


def three_quarter_view(n_views: int, first: object) -> int:
    """Return the index of the view nearest to azimuth 45 degrees (THREE_QUARTER), between front and side.

    Azimuth 0 is the front. The `n_views` views are evenly spaced around the object, in the order of increasing azimuth.
    `first` is the azimuth of view 0 in degrees; a value that is not a number counts as 0.
    """
    start = first if isinstance(first, int | float) else 0.0
    return min(range(n_views), key=lambda k: abs((start + 360 * k / n_views - THREE_QUARTER + 180) % 360 - 180))
