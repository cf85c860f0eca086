"""One process at a time works in the folder of a run; a second one is told who does.

The lock is the kernel's (POSIX, by `lockf`): it ends with its process, however that ends; processes that it started do
not share it; NFS and the file systems of clusters pass it from machine to machine. Where a file system has no locks, a
warning says so; Windows is not asked.
"""

from __future__ import annotations

import atexit
import logging
import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from threedgen.config.errors import ConfigError, short

logger = logging.getLogger(__name__)

NAME = ".threedgen.lock"
RANKS = "RANK LOCAL_RANK NODE_RANK SLURM_PROCID JSM_NAMESPACE_RANK".split()
"""Variables of which one is not 0 in a process that helps another one with the same run."""

_held: dict[Path, int] = {}  # folder: descriptor of its lock


def hold(folder: Path) -> bool:
    """Locks an existing folder until `release`, or the end of the process; False if it is not newly locked.

    The processes of one run on many devices hold one lock, that of the first. Raises ConfigError, which names the
    holder, and for a file that cannot be written.
    """
    folder = folder.resolve()
    if fcntl is None or folder in _held or any(os.environ.get(name, "0") != "0" for name in RANKS):
        return False
    path = folder / NAME
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); choose another out=", "out") from None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # systems differ
        holder = os.read(lock, 200).decode("utf-8", "replace").strip() or "another process"
        os.close(lock)
        wait = "wait for it, stop it, or choose another out="
        raise ConfigError(f"{folder} is in use by {short(holder, 200)[1:-1]}: {wait}", "out") from None
    except OSError as error:
        os.close(lock)
        logger.warning("%s cannot be locked (%s): let nothing else work there", folder, error.strerror)
        return False
    os.ftruncate(lock, 0)
    os.write(
        lock, f"process {os.getpid()} on {platform.node()} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n".encode()
    )
    _held[folder] = lock
    return True


def given_back(folder: Path) -> bool:
    """Has a process held the folder that has given it back since?"""
    try:
        return (folder / NAME).stat().st_size == 0
    except OSError:
        return False


def release(folder: Path) -> None:
    """Gives the folder back, if it is held. The file stays, empty: else it might be taken from the next holder."""
    lock = _held.pop(folder.resolve(), None)
    if lock is not None:
        with suppress(OSError):
            os.ftruncate(lock, 0)
        os.close(lock)


@atexit.register
def _release_all() -> None:
    for folder in list(_held):
        release(folder)
