"""Folders for what many tests share. The workers of pytest-xdist share them too, until the session ends."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

VARIABLE = "THREEDGEN_TESTS_KEPT"


def start_session() -> None:
    """Make the folder of the session, before its workers start."""
    os.environ[VARIABLE] = tempfile.mkdtemp(prefix="threedgen-tests-")


def end_session() -> None:
    shutil.rmtree(os.environ.pop(VARIABLE), ignore_errors=True)


def _session() -> Path:
    if VARIABLE not in os.environ:  # not under pytest
        start_session()
        atexit.register(end_session)
    return Path(os.environ[VARIABLE])


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder of a name, which `make` fills at its first use in the session."""
    folder = _session() / name
    done = folder.with_name(f"{name}.done")
    with FileLock(folder.with_name(f"{name}.lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def kept_folder() -> Path:
    """Return a new folder that is kept until the session ends."""
    return Path(tempfile.mkdtemp(dir=_session()))
