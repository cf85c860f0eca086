"""Task `gallery`: write gallery.html, a page with one card for each run below a folder, newest first."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from threedgen.config.errors import ConfigError
from threedgen.geometry.images import SHEET_GAP
from threedgen.geometry.picture_file import load_image
from threedgen.run.disk import Tree, write_atomic, writing
from threedgen.run.folder import CONFIG, stored_config, user_path
from threedgen.run.text import duration, say, visible

from .options import GalleryConfig
from .page import jpeg, link, page
from .record import TASKS, VIEWS_PER_ROW, Record, read_record
from .report import PAGE

logger = logging.getLogger(__name__)
NAME = "gallery.html"
CARD_PIXELS = 320  # maximum width and height of the image on a card, in pixels


def run(config: GalleryConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Run the task `gallery`: write the page of all runs below a folder and print its path. Returns exit code 0."""
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
    """Return the HTML of the gallery of `folder`, with links relative to `home`, and a reason for each skipped run."""
    found, broken = cards(folder, home)
    title = folder.resolve().name or str(folder)
    return page("gallery.html", ("gallery.js",), title=title, cards=found, broken=broken), broken


def cards(folder: Path, home: Path) -> tuple[list[Tree], list[str]]:
    """Return a card (see `card`) for each run below `folder`, newest first, and the reason for each skipped run."""
    records, broken = [], []
    for where, folders, names in os.walk(folder):
        folders.sort()
        try:
            if CONFIG in names and (stored_config(Path(where)) or {}).get("task", "generate") in TASKS:
                folders.clear()
                records.append(read_record(Path(where)))
        except ConfigError as error:
            broken.append(str(error))
    records.sort(key=lambda record: record.ended, reverse=True)
    return [card(record, home) for record in records], broken


def card(record: Record, home: Path) -> Tree:
    """Return the values of a run's card for the page template. Links are relative to the folder `home`."""
    report, seconds = record.file(PAGE), record.summary.seconds
    facts = [record.method, *record.choices, f"seed {record.option('seed')}", duration(seconds) if seconds else ""]
    facts = [fact for fact in (*facts, f"{record.ended:%Y-%m-%d}") if fact]
    return {
        "record": record,
        "picture": best_image(record),
        "link": relative_url(report, home) if report else None,
        "facts": facts,
        "words": visible(" ".join([record.prompt, record.state, *facts])).lower(),
    }


def relative_url(path: Path, home: Path) -> str:
    """Return the URL of a file relative to the folder `home`, so that both can be moved together."""
    try:
        return link(os.path.relpath(path, home))
    except ValueError:  # on another Windows drive
        return path.resolve().as_uri()


def best_image(record: Record) -> Markup | None:
    """Return the first view of the first readable contact sheet as a data URI; None if no sheet is readable."""
    for path, columns, rows in contact_sheets(record):
        try:
            sheet = load_image(path)
        except ConfigError:  # damaged: try the next sheet
            continue
        width, height = (sheet.width - SHEET_GAP) // columns - SHEET_GAP, (sheet.height - SHEET_GAP) // rows - SHEET_GAP
        image = sheet.convert("RGB").crop((SHEET_GAP, SHEET_GAP, SHEET_GAP + max(1, width), SHEET_GAP + max(1, height)))
        image.thumbnail((CARD_PIXELS, CARD_PIXELS))
        return jpeg(image)
    return None


def contact_sheets(record: Record) -> Iterator[tuple[Path, int, int]]:
    """Yield (path, columns, rows) of the run's contact sheets, which are images with several views in a grid.

    The result comes first, then the validation images, newest first, then the views sampled by the prior.
    """
    if views := record.file("views.png"):
        yield views, min(VIEWS_PER_ROW, record.n_views), -(-record.n_views // VIEWS_PER_ROW)
    for path in sorted(record.folder.glob("validation/*.png"), reverse=True):
        yield path, VIEWS_PER_ROW, 1
    if preview := record.file("preview.png"):
        yield preview, record.count("camera", "n_view") or 4, 1
