"""Where numba keeps its compiled kernels: without a folder that can be written it would not even load them.

Imports nothing but the standard library, for this comes before everything else.
"""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

VARIABLE = "NUMBA_CACHE_DIR"


def choose(package: Path) -> None:
    """Sets numba's variable if numba itself would find no place; a temporary one is said. Before numba's import.

    Numba takes the folder in the variable, or else __pycache__ beside the sources in `package`. An installation may be
    read-only: then it is the user's cache folder, and in a container without one a fresh temporary folder, which nobody
    else can write (what lies in it is executed).
    """
    if any(_writable(Path(place)) for place in (os.environ.get(VARIABLE), package / "__pycache__") if place):
        return
    with suppress(RuntimeError):  # nobody's home
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "threedgen" / "numba"
        if kept.is_absolute() and _writable(kept):
            os.environ[VARIABLE] = str(kept)
            return
    with suppress(OSError):
        os.environ[VARIABLE] = tempfile.mkdtemp(prefix="threedgen-numba-")
        words = "neither the installation nor a cache folder can be written: kernels are kept in %s (else set %s)"
        logger.warning(words, os.environ[VARIABLE], VARIABLE)


def _writable(folder: Path) -> bool:
    """Can a file be made there? The folder is made if need be. Permissions alone do not tell (root, mounts, NFS)."""
    trial = folder / f".{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink(missing_ok=True)  # another machine may have a process of this number
    except OSError:
        return False
    return True
