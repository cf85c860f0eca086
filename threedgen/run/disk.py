"""How files get to the disk: whole or not at all, and only where there is room. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from threedgen.config.errors import ConfigError

UNFINISHED = re.compile(r"\.\d+\.threedgen\.tmp$")
"""The end of a name that `unfinished` gives."""


def prepare(folder: Path, megabytes: float = 200) -> None:
    """Creates the folder. Raises ConfigError if it cannot be written or has under `megabytes` MiB of free disk."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            free = free_megabytes(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}); choose another out=", "out") from error
    if free < megabytes:
        needed = f"{folder} has {free:.0f} MB of free disk and the run needs {megabytes:.0f}"
        raise ConfigError(f"{needed}; make room or choose another out=", "out")


@contextmanager
def prepared(folder: Path, megabytes: float = 200) -> Iterator[None]:
    """Creates the folder (`prepare`) for what is done inside; removes it, and those above it, if they got nothing."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        prepare(folder, megabytes)
        yield
    finally:
        with suppress(OSError):  # the first that holds something
            for place in made:
                place.rmdir()


def free_megabytes(folder: Path) -> float:
    """Measures the free space in MiB of the file system that holds the existing `folder`. Raises OSError."""
    return shutil.disk_usage(folder).free / 2**20


def unfinished(path: Path) -> Path:
    """Gives the name under which this process writes a file or a folder that shall be at `path` when it is whole."""
    return path.with_name(f"{path.name}.{os.getpid()}.threedgen.tmp")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Makes a folder to fill, which at the end gets the name `path`, where none may be; after an error it goes."""
    temporary = unfinished(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a whole file or nothing: a reader, a kill or a full disk never sees half of it. Text is UTF-8.

    Raises OSError, with the old file untouched.
    """
    with replacing(path) as file:
        file.write(data if isinstance(data, bytes) else data.encode("utf-8"))


def write_json(path: Path, tree: Any) -> None:
    """Writes plain data, and the folder of the file if need be. Raises OSError, and ValueError for NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json_text(tree))


def json_text(tree: Any) -> str:
    """Lays out plain data as the text of a JSON file. Raises ValueError for NaN."""
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def replacing(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` once it is on the disk, or never; calls `before` in between."""
    temporary = unfinished(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name != "nt":  # forces the rename to the disk; Windows cannot open a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def writing(
    place: Path, remedy: str = "make room there and run the same command again, it goes on from its last checkpoint"
) -> Iterator[None]:
    """Turns an OSError inside (a full disk, a file that may not be read) into a ConfigError that says what to do."""
    try:
        yield
    except OSError as error:
        where = f", {error.filename}" if error.filename else ""
        raise ConfigError(f"{place} could not be written ({error.strerror or error}{where}): {remedy}") from error
