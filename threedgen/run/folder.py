"""The folder of a run: where it is, and what is written there (`disk.py`: how).

    config.yaml     the resolved config; loading it alone reproduces the run, if its length was not changed on the way;
                    its first line names what it was made of
    metrics.jsonl   one line for each logged step, and metrics.csv made from it
    summary.json    time, memory, versions, seed
    checkpoints/    states to go on from

Imports no torch: the folder is chosen and shown before the long imports begin.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from threedgen.config import COMMAND_LINE, dump, load, plain, renamed, yaml_text
from threedgen.config.command import command
from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import read_json
from threedgen.config.scheduled import is_step
from threedgen.run.disk import UNFINISHED, prepare, write_atomic
from threedgen.run.lock import NAME as LOCK
from threedgen.run.lock import given_back, hold

logger = logging.getLogger(__name__)

CONFIG, SUMMARY, CHECKPOINTS = "config.yaml", "summary.json", "checkpoints"
LENGTH = "trainer.max_steps"
ROOT = Path("outputs")
RUN = "run"
"""The folder's name of a run that has no prompt."""
HARMLESS = (
    "about needs out threads prompt_check trainer.max_steps trainer.log_every_n_steps trainer.val_check_interval "
    "checkpoint export march.chunk validation logging "
    "engine workers address cpus gpus attempts"  # who works
).split()
"""Keys, of sections too, that do not change the result of a run."""
EMBEDDED = ("toybox-base", "toybox-prior")
"""The names of what comes with threedgen; the former prior was only called "embedded"."""

C = TypeVar("C", bound=BaseModel)


def slug(text: str) -> str:
    """Makes a folder name of any text: a-z, 0-9 and '-', at most 69 characters, different for different texts.

    The readable part is the text without accents and other scripts; the last 8 hex digits are SHA-256 of the
    exact text.
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:60].strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{words or 'prompt'}-{digest[:8]}"


# --- which folder -----------------------------------------------------------------------------------------


def stored_config(folder: Path) -> dict[str, Any] | None:
    """Reads the config.yaml of a run as data; None if the folder has nothing of this name.

    Raises ConfigError for one that cannot be read or is of something else: it is not ours to overwrite.
    """
    path = folder / CONFIG
    if not os.path.lexists(path):
        return None
    tree = yaml_text.read(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is not the config of a run (it holds {short(tree)}); choose another folder")
    return tree


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Joins the keys of nested data by dots; a schedule is one value."""
    if not isinstance(tree, dict) or all(map(is_step, tree)) or not all(isinstance(key, str) for key in tree):
        return {prefix: tree}
    return {
        path: value
        for key, inner in tree.items()
        for path, value in flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def differences(old: dict[str, Any], new: dict[str, Any], extends: Iterable[str] = ()) -> list[str]:
    """Lists `key: old -> new` for every key that would change the result of a run, of two configs as data; where
    another `name` of a section changes what is in it, that is counted only.

    extends: further keys that do not make it another run. Raises ConfigError if the old run was made with the toybox
    prior of an earlier release and the new one has today's.
    """
    before, after = flat(renamed.in_run(old)), flat(new)
    if any(value == "embedded" and after.get(key) in EMBEDDED for key, value in before.items()):
        raise ConfigError(
            "the run in this folder was made with the toybox prior of an earlier release, which this one replaces: "
            "finish it with that release, or begin it anew in another folder"
        )
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    free = (*HARMLESS, *extends)
    keys = [key for key in changed if not any(key == name or key.startswith(f"{name}.") for name in free)]
    names = [key for key in keys if key.endswith(".name")]
    told = Counter(
        min((name for name in names if key.startswith(name.removesuffix("name"))), key=len, default=key) for key in keys
    )
    more = {key: f", and {n - 1} more of its section" if n > 1 else "" for key, n in told.items()}
    return [f"{key}: {short(before.get(key))} -> {short(after.get(key))}{more[key]}" for key in more]


def user_path(text: str | Path, key: str) -> Path:
    """Expands `~` in a path that the system can look up. Raises ConfigError naming `key`."""
    try:
        path = Path(text).expanduser()
        if str(text).strip():
            path.stat()  # raises for a name that is too long, or holds a NUL
            return path
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (OSError, RuntimeError, ValueError):
        pass
    raise ConfigError("should be the path of a folder", key, str(text))


def existing_folder(text: str | Path, key: str) -> Path:
    """Finds the folder of this name, `~` expanded. Raises ConfigError naming `key` if there is none."""
    folder = user_path(text, key)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {str(text)!r}", key)
    return folder


def config_name(path: Path) -> str:
    """Names a config's file for its run folders; for the config.yaml of a run, that of the run."""
    return path.resolve().parent.name if path.name == CONFIG else path.stem


def _own_folder(config: BaseModel, config_name: str) -> Path:
    """Finds outputs/CONFIG/slug-of-the-prompt, with -2, -3, ... behind it while such a folder belongs to another run.

    So the same config always gets the same folder. A longer run is another one, unless it is asked for. The folder of
    a run that failed before any work is as good as none.
    """
    prompt = getattr(config, "prompt", None)
    name = slug(prompt) if isinstance(prompt, str) else RUN
    parent = ROOT / (re.sub(r"[^A-Za-z0-9_-]+", "-", config_name).strip("-")[:60] or "config")
    expected = plain(config)
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with suppress(ConfigError):
            stored = stored_config(folder)
            if not has_work(folder) and (stored is None or given_back(folder)):
                break
            if stored is None:
                continue
            if not differences(stored, expected) and flat(stored).get(LENGTH) == flat(expected).get(LENGTH):
                break
    return folder


def place_of(config: BaseModel, config_name: str) -> Path:
    """Finds the folder of a run: `out`, or one of its own. Raises ConfigError for what is no path."""
    out = getattr(config, "out", None)
    return _own_folder(config, config_name) if out is None else user_path(out, "out")


def choose(config: BaseModel, config_name: str) -> tuple[Path, dict[str, Any] | None]:
    """Finds the folder of a run, and the config of this run if it is there already, to be resumed; writes nothing.

    Raises ConfigError if `out` is not a folder, or holds a run of another config (but for harmless keys: HARMLESS) or
    files that are no run's. A run that left no work, as it failed before, gives way to any other.
    """
    out, folder = getattr(config, "out", None), place_of(config, config_name)
    if folder.exists() and not folder.is_dir():
        raise ConfigError("should be a folder, but a file has this name", "out", str(out))
    stored, work = stored_config(folder), has_work(folder)
    if stored is None and work:
        raise ConfigError("holds files that are not of a run, which might be lost; name a new folder", "out", str(out))
    changed = [] if stored is None else differences(stored, plain(config), getattr(config, "extends", ()))
    if changed and work:
        raise ConfigError(
            f"{folder} holds a run of another config; choose another out=, or the same values. "
            f"They differ in {'; '.join(changed)}"
        )
    return folder, None if changed else stored


def begin(config: C, config_name: str) -> tuple[C, Path | None]:
    """Chooses, creates and labels the folder of a run.

    Returns the config with `out` set to the folder, and the folder once more if it already holds this run (else None).
    Raises ConfigError for what `choose` does, and if it cannot be written or is in use by another process (`run.lock`).
    """
    folder, stored = choose(config, config_name)
    return _labelled(folder, config, config_name, stored), None if stored is None else folder


def has_work(folder: Path) -> bool:
    """Is there anything in the folder of a run, at any depth, but what is there before its work begins?"""
    files = (name for _, _, names in os.walk(folder) for name in names)
    return any(name not in (CONFIG, LOCK) and not UNFINISHED.search(name) for name in files)


def steps_done(folder: Path) -> int:
    """Reads the optimisation steps behind the results of a run, as its summary has them; 0 where it has none."""
    steps = read_json(folder / SUMMARY).get("steps")
    return steps if type(steps) is int else 0


def _labelled(folder: Path, config: C, config_name: str, before: dict[str, Any] | None) -> C:
    """Takes the folder and writes config.yaml there, unless the run is longer already than the config asks for.

    `before`: the config of the run that is there, which may have another length.
    """
    prepare(folder)
    if hold(folder):
        clear_unfinished(folder, below=True)
    former, length = (flat(tree).get(LENGTH) for tree in (before or {}, plain(config)))
    if length is None or length >= steps_done(folder):
        write_config(folder, config, config_name)
        if former not in (None, length) and has_work(folder):
            words = "%s: %s -> %s; values that are given in percent of the run count from its new length"
            logger.warning(words, LENGTH, former, length)
    return config.model_copy(update={"out": str(folder)})


def run_folder(run: str | Path, key: str = "--resume") -> Path:
    """Finds the folder of the run at `run`, a folder or a file in it. Raises ConfigError for `key` if there is none."""
    folder = user_path(run, key)
    folder = folder.parent if folder.is_file() else folder
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"should be the folder of a run, with a {CONFIG} in it", key, str(run))
    return folder


def reopen(run: str | Path, overrides: list[str]) -> tuple[Any, Path]:
    """Loads the config (with `out` set) of a run that is to go on, and finds its folder.

    Overrides may change harmless keys only. Raises ConfigError, also if another process works there.
    """
    folder = run_folder(run)
    config, stored = load((folder / CONFIG).resolve(), overrides), stored_config(folder)
    changed = differences(stored or {}, plain(config), getattr(config, "extends", ()))
    if changed:
        raise ConfigError(
            f"{COMMAND_LINE}: these changes would make it another run: {'; '.join(changed)}. "
            f"Start a new one with {command('--config', str(folder / CONFIG))}"
        )
    name = made_of((folder / CONFIG).read_text(encoding="utf-8"))
    return _labelled(folder, config, name, stored), folder


def write_config(folder: Path, config: BaseModel, config_name: str = "") -> None:
    """Writes config.yaml, complete but without the folder's own place, so that a run can be moved."""
    first = f"# {' '.join(config_name.split())}\n" if config_name else ""
    write_atomic(folder / CONFIG, first + dump(config.model_copy(update={"out": None})))


def made_of(text: str) -> str:
    """Reads the config's name that a config.yaml has in its first line; "" if it has none."""
    first = text.partition("\n")[0]
    return first[1:].strip() if first.startswith("#") else ""


def clear_unfinished(folder: Path, below: bool = False) -> None:
    """Takes away what processes that were killed left half-written in `folder`; `below` it too, except in other runs.

    Nothing may be writing there. Raises OSError.
    """
    for place, folders, names in os.walk(folder):
        for name in filter(UNFINISHED.search, folders + names):
            path = Path(place, name)
            shutil.rmtree(path) if name in folders else path.unlink(missing_ok=True)
        kept = (name for name in folders if below and not UNFINISHED.search(name))
        folders[:] = [name for name in kept if not Path(place, name, CONFIG).exists()]
