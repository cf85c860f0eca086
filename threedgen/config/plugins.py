"""`--plugin mine.py`: a module of the user's, whose import adds names to the registry (docs/plugins.md)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from threedgen.config.errors import ConfigError, short

FLAG = "--plugin"


def load(place: str) -> None:
    """Imports the plug-ins that are named, files or modules with commas between them. Raises ConfigError."""
    for name in place.split(","):
        path = Path(name.strip()).expanduser()
        is_file = path.suffix == ".py"
        if is_file and not path.is_file():
            raise ConfigError("there is no such file", FLAG, name)
        # by its name, so that a worker process and the registry's paths find it again
        sys.path.insert(0, str(path.resolve().parent) if is_file else str(Path.cwd()))
        try:
            importlib.import_module(path.stem if is_file else name.strip())
        except Exception as error:  # whatever its author may have written
            raise ConfigError(f"{name}: {type(error).__name__}: {short(str(error))}", FLAG) from error
