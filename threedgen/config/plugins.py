"""Plug-ins: `--plugin mine.py` imports a user's module, which adds names to the registry (docs/plugins.md)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from threedgen.config.errors import ConfigError

FLAG = "--plugin"


def load(place: str) -> None:
    """Import plug-ins, files or modules separated by commas; their own errors are raised as they are.

    Raises ConfigError for a file that does not exist.
    """
    for name in place.split(","):
        path = Path(name.strip()).expanduser()
        is_file = path.suffix == ".py"
        if is_file and not path.is_file():
            raise ConfigError("file not found", FLAG, name)
        # by its name, so that a worker process and the registry's paths find it again
        sys.path.insert(0, str(path.resolve().parent) if is_file else str(Path.cwd()))
        importlib.import_module(path.stem if is_file else name.strip())
