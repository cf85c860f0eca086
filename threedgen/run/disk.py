"""Atomic file writes and checks of free disk space. Imports no torch."""

import errno
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from threedgen.config.errors import DiskFull, FileError, as_expected_error

Tree = dict[str, Any]  # nested plain data, as in a config or a JSON file
TEMPORARY_NAME = re.compile(r"\.\d+\.threedgen\.tmp$")  # end of the names from `temporary_path`


def prepare(folder: Path, megabytes: float = 200) -> None:
    """Create a folder, and check that it can be used for a run.

    Raises FileError if the folder is not writable, DiskFull if less than `megabytes` MiB of disk space are free.
    """
    try:
        make_folder(folder)
        with TemporaryFile(dir=folder):
            free = free_megabytes(folder)
    except OSError as error:
        raise FileError(f"{folder} cannot be written ({error.strerror}). Choose another out=", "out") from error
    if free < megabytes:
        needed = f"{folder} has {free:.0f} MB of free disk, but the run needs {megabytes:.0f} MB"
        raise DiskFull(f"{needed}. Make room or choose another out=", "out")


def free_megabytes(folder: Path) -> float:
    """Return the free space in MiB of the file system of a folder. Raises OSError if the folder does not exist."""
    return shutil.disk_usage(folder).free / 2**20


def temporary_path(path: Path) -> Path:
    """Return a path beside `path`, unique to this process, for a temporary file or folder that is renamed to `path`."""
    return path.with_name(f"{path.name}.{os.getpid()}.threedgen.tmp")


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, and sync their entries to the disk. An existing folder is accepted."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Force the data of a file, or the list of entries of a folder, onto the disk (fsync).

    For a folder, nothing is done on Windows and on file systems that cannot sync folders.
    """
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Sync a temporary file or folder to the disk and rename it to `path`.

    After a power loss, `path` is therefore either complete or as it was before.
    """
    for part in (*temporary.rglob("*"), temporary) if temporary.is_dir() else (temporary,):
        sync(part)
    os.replace(temporary, path)
    sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Context manager that yields a temporary folder and renames it to `path` on exit. `path` must not exist.

    After an error, the temporary folder is removed.
    """
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_key(name: str) -> str:
    """Return a key of a file name, which is equal for names that differ only in case or in the encoding of accents.

    With these keys, a file is found even if another file, such as an MTL file, spells its name in another way.
    """
    return unicodedata.normalize("NFC", name).casefold()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file completely, or leave the old file unchanged and raise the error, such as OSError.

    Text is encoded as UTF-8.
    """
    with atomic_file(path) as file:
        file.write(data if isinstance(data, bytes) else data.encode("utf-8"))


def write_json(path: Path, tree: object) -> None:
    """Write plain data (dicts, lists, str, numbers, bool, None) to a JSON file; create a missing parent folder.

    The file is replaced atomically: it has either the old content or all of the new. Raises OSError if the file cannot
    be written, and ValueError for NaN and infinity.
    """
    make_folder(path.parent)
    write_atomic(path, json_text(tree))


def json_text(tree: object) -> str:
    """Return plain data (dicts, lists, str, numbers, bool, None) as the indented text of a JSON file.

    Raises ValueError for NaN and infinity.
    """
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def atomic_file(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """Context manager that yields a temporary file, open for writing bytes, and renames it to `path` on exit.

    On exit, the data are synced to the disk first. Then the function `before` is called, which may move the old file
    away, and the file is renamed. After an error the temporary file is removed.
    """
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            sync_file(file)
        before()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync_file(file: BinaryIO) -> None:
    """Write the buffered data of an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Context manager that converts an OSError in its block to DiskFull, if the disk is full, or else to FileError.

    The message names the path `place`.
    """
    try:
        yield
    except OSError as error:
        raise write_error(place, error) from error


def write_error(place: Path, error: OSError) -> DiskFull | FileError:
    """Convert the OSError of a failed write: of a full disk to DiskFull, any other to FileError.

    The message has the path `place`, the reason, and the file name in `error`, if any.
    """
    file = f", {error.filename}" if error.filename else ""
    problem = f"{place} could not be written ({error.strerror or error}{file})"
    if isinstance(as_expected_error(error), DiskFull):
        return DiskFull(f"{problem}. Make room there and run the same command again")
    return FileError(problem)
