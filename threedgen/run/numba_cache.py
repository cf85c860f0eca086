"""Choice of a writable cache folder for Numba, which otherwise compiles its kernels in every process.

This module imports only the standard library, because it runs before all other imports.
"""

import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

VARIABLE = "NUMBA_CACHE_DIR"


def choose(package: Path) -> None:
    """Set NUMBA_CACHE_DIR if neither it nor __pycache__ in `package` is writable. Call before importing Numba.

    The new value is a folder in the user's cache. Without a writable one, as in some containers, it is a new temporary
    folder, and a warning is logged. Other users must not write there, because the files are executed.
    """
    if any(_writable(Path(folder)) for folder in (os.environ.get(VARIABLE), package / "__pycache__") if folder):
        return
    with suppress(RuntimeError):  # no home folder
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "threedgen" / "numba"
        if cache.is_absolute() and _writable(cache):
            os.environ[VARIABLE] = str(cache)
            return
    with suppress(OSError):
        os.environ[VARIABLE] = tempfile.mkdtemp(prefix="threedgen-numba-")
        text = "no cache folder is writable: kernels are cached in %s. Set %s to a writable folder"
        logger.warning(text, os.environ[VARIABLE], VARIABLE)


def _writable(folder: Path) -> bool:
    """Return whether a file can be created in a folder; permissions are not enough (root, mounts, NFS)."""
    trial = folder / f".{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink(missing_ok=True)  # on a shared disk another machine may have a process with this id
    except OSError:
        return False
    return True
