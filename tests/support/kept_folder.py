"""A folder for what many tests share."""

import atexit
import tempfile
from pathlib import Path


def kept_folder() -> Path:
    """A new folder that is there until this process ends."""
    kept = tempfile.TemporaryDirectory()
    atexit.register(kept.cleanup)
    return Path(kept.name)
