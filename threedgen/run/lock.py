"""Lock of a run folder, so that only one process at a time writes there.

The lock is a POSIX lock (`lockf`): the kernel releases it when the process ends, child processes do not inherit it, and
NFS and cluster file systems share it between machines. If the file system has no locks, a warning is logged and nothing
is locked. On Windows nothing is locked.
"""

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

from threedgen.config.errors import ConfigError
from threedgen.run.disk import writing
from threedgen.run.options import is_rank_zero

logger = logging.getLogger(__name__)

NAME = ".threedgen.lock"

_locks: dict[Path, int] = {}  # folder -> descriptor of its lock file


def has_locks() -> bool:
    """Return whether the system has file locks. Windows has none."""
    return fcntl is not None


def acquire(folder: Path) -> bool:
    """Lock an existing folder until `release` is called or the process ends.

    Returns True if this call locked the folder. Returns False if this process has locked it already, if this is not
    rank 0 of a distributed run, or if the system has no file locks. Raises ConfigError if another process has the lock.
    """
    folder = folder.resolve()
    if not has_locks() or folder in _locks or not is_rank_zero():
        return False
    with writing(folder):
        lock = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # systems differ
        holder = os.read(lock, 200).decode("utf-8", "replace").strip() or "another process"
        os.close(lock)
        remedy = "Wait for it, stop it, or choose another out="
        raise ConfigError(f"{folder} is in use by {holder}. {remedy}", "out") from None
    except OSError as error:
        os.close(lock)
        logger.warning("cannot lock %s (%s). Do not start another run there", folder, error.strerror)
        return False
    _locks[folder] = lock
    started = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    with writing(folder):
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {platform.node()} since {started}\n".encode())
    return True


def was_released(folder: Path) -> bool:
    """Return whether the last process that locked a folder has released it, by `release` or by a normal exit.

    Returns False if the folder was never locked, if that process still has the lock, or if it was killed.
    """
    try:
        return (folder / NAME).stat().st_size == 0
    except OSError:
        return False


def release(folder: Path) -> None:
    """Release the lock of a folder if this process holds it.

    The lock file remains, because deleting it could remove the lock of another process.
    """
    lock = _locks.pop(folder.resolve(), None)
    if lock is not None:
        with suppress(OSError):  # the disk failed: the lock ends nevertheless
            os.ftruncate(lock, 0)
        os.close(lock)


@atexit.register
def _release_all() -> None:
    for folder in list(_locks):
        release(folder)
