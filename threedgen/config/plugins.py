"""Import of plug-ins: the user's Python modules that add entries to the registry (docs/plugins.md)."""

import hashlib
import importlib
import importlib.util
import logging
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from threedgen.config import registry
from threedgen.config.errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

FLAG = "--plugin"


class Plugin(NamedTuple):
    """Imported plug-in: its Python file, and the SHA-256 of the file when it was imported."""

    path: Path
    sha256: str


LOADED: dict[str, Plugin] = {}  # dict from module name to imported plug-in


def load(names: str) -> None:
    """Import plug-ins: Python modules that add components to the registry.

    A component is a class or function that a config selects by name, such as a loss.

    `names` are .py files and names of installed modules, separated by commas. Raises ConfigError if a file is missing,
    or if a name is no module or has no file (a built-in module, a folder). An exception in a plug-in is not caught.
    """
    for name in map(str.strip, names.split(",")):
        if name.endswith(".py"):
            load_file(Path(name))
        else:
            package = name.partition(".")[0]  # if it exists, an ImportError is a mistake in the plug-in: not caught
            module = importlib.import_module(name) if package and importlib.util.find_spec(package) else None
            file = getattr(module, "__file__", None)
            if file is None:
                guess = did_you_mean(f"{name}.py" if Path(f"{name}.py").is_file() else None)
                raise ConfigError(f"should be a .py file or the name of an installed module{guess}", FLAG, name)
            LOADED[name] = _plugin(Path(file))


def load_file(path: Path, key: str = FLAG) -> None:
    """Import a plug-in file, unless it is already imported.

    Raises ConfigError, with `key` (the config key or flag that names the file), if the file is missing or is no Python
    file. The module's name contains a hash of the path, so that plug-ins with equal file names do not clash.
    """
    try:
        path = path.expanduser().resolve(strict=True)
    except (OSError, RuntimeError):
        raise ConfigError("file not found", key, str(path)) from None
    stem = re.sub(r"\W", "_", path.stem)
    name = f"plugin_{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError("should be a Python file", key, str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the registry imports the plug-in's paths by this name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    LOADED[name] = _plugin(path)


def command_words() -> list[str]:
    """Return command-line words that import the plug-ins of this process in another one; [] if there are none."""
    names = [str(plugin.path) if name.startswith("plugin_") else name for name, plugin in LOADED.items()]
    return [FLAG, ",".join(names)] if names else []


def load_all(loaded: Mapping[str, Plugin]) -> None:
    """Import, in this worker process, the plug-ins (the user's Python modules) that the main process has imported.

    Plug-ins add classes and functions to the registry, and each process has its own registry. `loaded` maps module
    names to plug-ins: the variable `LOADED` of the main process.
    """
    for name, plugin in loaded.items():
        if name.startswith("plugin_"):
            load_file(plugin.path)
        else:
            load(name)


def identify() -> dict[str, dict[str, str | None]]:
    """Return hashes of the plug-ins: {file: {"sha256": hash, "commit": git commit of its folder, or None}}.

    Modules that Python code has imported without `load` count too, once they have registered a component.
    """
    return {str(path): {"sha256": sha256, "commit": _commit(path.parent)} for path, sha256 in _imported()}


def code_hashes(kind: str, name: str) -> list[str]:
    """Return the SHA-256 of all plug-ins if a plug-in registers the component, such as the kind "prior"; else [].

    Add them to the hash of the inputs under which results of the component are cached.
    """
    if registry.entry(kind, name).implementation.startswith("threedgen."):
        return []
    return sorted(plugin.sha256 for plugin in _imported())


def changed(recorded: object) -> list[str]:
    """Return the paths of imported plug-ins whose SHA-256 differs from the recorded one.

    `recorded` is {file: {"sha256": hash, ...}}, which the earlier process wrote to its checkpoint or summary.json.
    Plug-ins without a recorded hash are left out. If `recorded` is no dict, the result is [].
    """
    before = recorded if isinstance(recorded, dict) else {}
    pairs = [(before.get(str(path)), str(path), sha256) for path, sha256 in _imported()]
    return [file for old, file, sha256 in pairs if isinstance(old, dict) and old.get("sha256") != sha256]


def warn_changed(recorded: object, folder: Path) -> None:
    """Log a warning for each imported plug-in that differs from the one with which the run in `folder` stopped.

    `recorded` is as in the function `changed`.
    """
    for file in changed(recorded):
        logger.warning("the plug-in %s has changed since the run in %s stopped", file, folder)


def _imported() -> list[Plugin]:
    modules = {entry.implementation.partition(":")[0] for named in registry.TABLE.values() for entry in named.values()}
    found = list(LOADED.values())
    for name in sorted(modules - LOADED.keys()):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and not name.startswith("threedgen.") and Path(file).is_file():  # not a file in a zip archive
            found.append(_plugin(Path(file)))
    return found


def _plugin(path: Path) -> Plugin:
    return Plugin(path, hashlib.sha256(path.read_bytes()).hexdigest())


def _commit(folder: Path) -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
