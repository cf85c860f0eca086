"""The gallery, gallery.html: a card for each generate run below a folder, the newest first."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markupsafe import Markup

from threedgen.config.errors import ConfigError
from threedgen.geometry.images import GAP
from threedgen.geometry.picture_file import read_picture
from threedgen.run.disk import write_atomic, writing
from threedgen.run.folder import CONFIG, stored_config, user_path
from threedgen.run.text import duration, say, visible

from .options import GalleryConfig
from .page import REMEDY, jpeg, link, page
from .record import ROW, TASKS, Record, as_int, read_record
from .report import PAGE

logger = logging.getLogger(__name__)
NAME = "gallery.html"
STILL = 320
"""Most pixels of a card's picture, on either side."""


def run(config: GalleryConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Carries out the task "gallery": writes the page over all runs below a folder; prints where it is."""
    folder = user_path(config.runs, "runs")
    path = folder / NAME if config.out is None else user_path(config.out, "out")
    if config.out is not None and (path.is_dir() or path.suffix.lower() not in (".html", ".htm")):
        path /= NAME
    with writing(path, REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
        text, broken = gallery(folder, path.parent)
        write_atomic(path, text)
    for reason in broken:
        logger.warning("left out: %s", reason)
    say(str(path))
    return 0


def gallery(folder: Path, home: Path) -> tuple[str, list[str]]:
    """Makes the page for the runs below `folder`, to lie in `home`; and a sentence for each run that is left out."""
    found, broken = cards(folder, home)
    title = folder.resolve().name or str(folder)
    return page("gallery.html", ("gallery.js",), title=title, cards=found, broken=broken), broken


def cards(folder: Path, home: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Makes a card for each run below `folder`, the newest first, and a sentence for each that is left out."""
    records, broken = [], []
    for where in run_folders(folder):
        try:
            records.append(read_record(where))
        except ConfigError as error:
            broken.append(str(error))
    records.sort(key=lambda record: record.ended, reverse=True)
    return [card(record, home) for record in records], broken


def run_folders(folder: Path) -> Iterator[Path]:
    """Finds folders of generate runs, an evaluation's own too, and those whose config cannot be read."""
    for where, folders, names in os.walk(folder):
        folders.sort()
        if CONFIG not in names:
            continue
        try:
            task = (stored_config(Path(where)) or {}).get("task", "generate")
        except ConfigError:
            task = "generate"  # whoever reads it as a run will say what is wrong
        if task in TASKS:
            folders.clear()
            yield Path(where)


def card(record: Record, home: Path) -> dict[str, Any]:
    """Describes a run as gallery.html shows it, with links from a page in the folder `home`."""
    report = record.file(PAGE)
    seconds = [] if record.seconds is None else [duration(record.seconds)]
    method = [record.method] if record.method else []
    facts = [*method, *record.choices, f"seed {record.seed}", *seconds, f"{record.ended:%Y-%m-%d}"]
    return {
        "record": record,
        "picture": best_picture(record),
        "link": address(report, home) if report else None,
        "facts": facts,
        "words": visible(" ".join([record.prompt, record.state, *facts])).lower(),
    }


def address(path: Path, home: Path) -> str:
    """Links a file from a page in `home`: relative, so that both can be moved together."""
    try:
        return link(os.path.relpath(path, home))
    except ValueError:  # another drive of Windows: there is no relative way
        return path.resolve().as_uri()


def best_picture(record: Record) -> Markup | None:
    """Finds the best single picture: the result's front, else the newest on the way, else the first sampled view."""
    for path, columns, rows in sheets(record):
        try:
            sheet = read_picture(path)
        except ConfigError:  # damaged: the next best
            continue
        width, height = (sheet.width - GAP) // columns - GAP, (sheet.height - GAP) // rows - GAP
        picture = sheet.convert("RGB").crop((GAP, GAP, GAP + max(1, width), GAP + max(1, height)))
        picture.thumbnail((STILL, STILL))
        return jpeg(picture)
    return None


def sheets(record: Record) -> Iterator[tuple[Path, int, int]]:
    """Yields the run's contact sheets, the best first, with their columns and rows."""
    on_the_way = sorted(record.folder.glob("validation/*.png"), reverse=True)
    if views := record.file("views.png"):
        yield views, min(ROW, record.sides), -(-record.sides // ROW)
    for path in on_the_way:
        yield path, ROW, 1
    if preview := record.file("preview.png"):
        yield preview, max(1, as_int(record.option("camera", "n_view")) or 4), 1
