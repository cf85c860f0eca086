"""The folder of a run: where it is, what is written there, and how it gets to the disk.

    config.yaml     the resolved config; loading it alone reproduces the run, if its length was not changed on the way
    metrics.jsonl   one line for each logged step, and metrics.csv made from it
    summary.json    time, memory, versions, seed

Imports no torch: the folder is chosen and shown before the long imports begin.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel

from threedgen.config import COMMAND_LINE, dump, load, plain, renamed, yaml_text
from threedgen.config.command import command
from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import read_json
from threedgen.run.lock import NAME as LOCK
from threedgen.run.lock import given_back, hold

logger = logging.getLogger(__name__)

CONFIG, SUMMARY = "config.yaml", "summary.json"
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
_UNFINISHED = re.compile(r"\.\d+\.threedgen\.tmp$")

C = TypeVar("C", bound=BaseModel)


def slug(text: str) -> str:
    """A folder name for any text: a-z, 0-9 and '-', at most 69 characters, different for different texts.

    The readable part is the text without accents and other scripts; the last 8 hex digits are SHA-256 of the
    exact text.
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:60].strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{words or 'prompt'}-{digest[:8]}"


# --- which folder -----------------------------------------------------------------------------------------


def stored_config(folder: Path) -> dict[str, Any] | None:
    """The config.yaml of a run as data; None if the folder has nothing of this name.

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
    """Joins the keys of nested data by dots."""
    if not isinstance(tree, dict) or not tree or not all(isinstance(key, str) for key in tree):
        return {prefix: tree}
    return {
        path: value
        for key, inner in tree.items()
        for path, value in flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every key that would change the result of a run, two configs given as data.

    Raises ConfigError if the old run was made with the toybox prior of an earlier release and the new one has today's.
    """
    before, after = flat(renamed.in_run(old)), flat(new)
    if any(value == "embedded" and after.get(key) in EMBEDDED for key, value in before.items()):
        raise ConfigError(
            "the run in this folder was made with the toybox prior of an earlier release, which this one replaces: "
            "finish it with that release, or begin it anew in another folder"
        )
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [
        f"{key}: {short(before.get(key))} -> {short(after.get(key))}"
        for key in keys
        if not any(key == name or key.startswith(f"{name}.") for name in HARMLESS)
    ]


def user_path(text: str | Path, key: str) -> Path:
    """A path that the system can look up, `~` expanded. Raises ConfigError naming `key`."""
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


def config_name(path: Path) -> str:
    """The name of a config's file for its run folders; for the config.yaml of a run, that of the run."""
    return path.resolve().parent.name if path.name == CONFIG else path.stem


def _own_folder(config: BaseModel, config_name: str) -> Path:
    """outputs/CONFIG/slug-of-the-prompt, with -2, -3, ... behind it while such a folder belongs to another run.

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
    """The folder of a run: `out`, or one of its own. Raises ConfigError for what is no path."""
    out = getattr(config, "out", None)
    return _own_folder(config, config_name) if out is None else user_path(out, "out")


def prepare(folder: Path, megabytes: float = 200) -> None:
    """Create the folder; ConfigError if it cannot be written or has under `megabytes` MiB of free disk."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            free = free_megabytes(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}); choose another out=", "out") from error
    if free < megabytes:
        needed = f"{folder} has {free:.0f} MB of free disk and the run needs {megabytes:.0f}"
        raise ConfigError(f"{needed}; make room or choose another out=", "out")


@contextmanager
def prepared(folder: Path, megabytes: float = 200) -> Iterator[None]:
    """Inside, the folder is there (`prepare`); folders that were made for it and got nothing are taken away again."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        prepare(folder, megabytes)
        yield
    finally:
        with suppress(OSError):  # the first that holds something
            for place in made:
                place.rmdir()


def free_megabytes(folder: Path) -> float:
    """Free space in MiB of the file system that holds the existing `folder`. Raises OSError."""
    return shutil.disk_usage(folder).free / 2**20


def choose(config: BaseModel, config_name: str) -> tuple[Path, dict[str, Any] | None]:
    """The folder of a run, and the config of this run as it is there already, to be resumed, if so; nothing is written.

    Raises ConfigError if `out` is not a folder, or holds a run of another config (but for harmless keys: HARMLESS) or
    files that are no run's. A run that left no work, as it failed before, gives way to any other.
    """
    out, folder = getattr(config, "out", None), place_of(config, config_name)
    if folder.exists() and not folder.is_dir():
        raise ConfigError("should be a folder, but a file has this name", "out", str(out))
    stored, work = stored_config(folder), has_work(folder)
    if stored is None and work:
        raise ConfigError("holds files that are not of a run, which might be lost; name a new folder", "out", str(out))
    changed = [] if stored is None else differences(stored, plain(config))
    if changed and work:
        raise ConfigError(
            f"{folder} holds a run of another config; choose another out=, or the same values. "
            f"They differ in {'; '.join(changed)}"
        )
    return folder, None if changed else stored


def begin(config: C, config_name: str) -> tuple[C, Path | None]:
    """Choose, create and label the folder of a run.

    Returns the config with `out` set to the folder, and the folder once more if it already holds this run (else None).
    Raises ConfigError for what `choose` does, and if it cannot be written or is in use by another process (`run.lock`).
    """
    folder, stored = choose(config, config_name)
    return _labelled(folder, config, stored), None if stored is None else folder


def has_work(folder: Path) -> bool:
    """Is there anything in the folder of a run, at any depth, but what is there before its work begins?"""
    files = (name for _, _, names in os.walk(folder) for name in names)
    return any(name not in (CONFIG, LOCK) and not _UNFINISHED.search(name) for name in files)


def steps_done(folder: Path) -> int:
    """Optimisation steps behind the results of a run, as its summary has them; 0 where it has none."""
    steps = read_json(folder / SUMMARY).get("steps")
    return steps if type(steps) is int else 0


def _labelled(folder: Path, config: C, before: dict[str, Any] | None) -> C:
    """Takes the folder and writes config.yaml there, unless the run is longer already than the config asks for.

    `before`: the config of the run that is there, which may have another length.
    """
    prepare(folder)
    if hold(folder):
        clear_unfinished(folder, below=True)
    former, length = (flat(tree).get(LENGTH) for tree in (before or {}, plain(config)))
    if length is None or length >= steps_done(folder):
        write_config(folder, config)
        if former not in (None, length) and has_work(folder):
            words = "%s: %s -> %s; values that are given in percent of the run count from its new length"
            logger.warning(words, LENGTH, former, length)
    return config.model_copy(update={"out": str(folder)})


def run_folder(run: str | Path, key: str = "--resume") -> Path:
    """The folder of the run at `run`, a folder or a file in it. Raises ConfigError, naming `key`, if there is none."""
    folder = user_path(run, key)
    folder = folder.parent if folder.is_file() else folder
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"should be the folder of a run, with a {CONFIG} in it", key, str(run))
    return folder


def reopen(run: str | Path, overrides: list[str]) -> tuple[Any, Path]:
    """The config (with `out` set) and the folder of a run that is to go on.

    Overrides may change harmless keys only. Raises ConfigError, also if another process works there.
    """
    folder = run_folder(run)
    config, stored = load((folder / CONFIG).resolve(), overrides), stored_config(folder)
    changed = differences(stored or {}, plain(config))
    if changed:
        raise ConfigError(
            f"{COMMAND_LINE}: these changes would make it another run: {'; '.join(changed)}. "
            f"Start a new one with {command('--config', str(folder / CONFIG))}"
        )
    return _labelled(folder, config, stored), folder


def write_config(folder: Path, config: BaseModel) -> None:
    """config.yaml, complete but without the folder's own place, so that a run can be moved."""
    write_atomic(folder / CONFIG, dump(config.model_copy(update={"out": None})))


# --- to the disk ------------------------------------------------------------------------------------------


def unfinished(path: Path) -> Path:
    """The name under which this process writes a file or a folder that shall be at `path` when it is whole."""
    return path.with_name(f"{path.name}.{os.getpid()}.threedgen.tmp")


def clear_unfinished(folder: Path, below: bool = False) -> None:
    """Takes away what processes that were killed left half-written in `folder`; `below` it too, except in other runs.

    Nothing may be writing there. Raises OSError.
    """
    for place, folders, names in os.walk(folder):
        for name in filter(_UNFINISHED.search, folders + names):
            path = Path(place, name)
            shutil.rmtree(path) if name in folders else path.unlink(missing_ok=True)
        kept = (name for name in folders if below and not _UNFINISHED.search(name))
        folders[:] = [name for name in kept if not Path(place, name, CONFIG).exists()]


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing: a reader, a kill or a full disk never sees half of it. Text is UTF-8.

    Raises OSError, with the old file untouched.
    """
    with replacing(path) as file:
        file.write(data if isinstance(data, bytes) else data.encode("utf-8"))


def write_json(path: Path, tree: Any) -> None:
    """Writes plain data, and the folder of the file if need be. Raises OSError, and ValueError for NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json_text(tree))


def json_text(tree: Any) -> str:
    """Plain data as a file's text. Raises ValueError for NaN."""
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def replacing(path: Path, before: Callable[[], None] = lambda: None) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when all of it is on the disk, or never; `before` is called in between."""
    temporary = unfinished(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        before()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name != "nt":  # forces the rename to the disk; Windows cannot open a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def writing(
    place: Path, remedy: str = "make room there and run the same command again, it goes on from its last checkpoint"
) -> Iterator[None]:
    """Inside, an OSError (a full disk, a file that may not be read) becomes a ConfigError that says what to do."""
    try:
        yield
    except OSError as error:
        where = f", {error.filename}" if error.filename else ""
        raise ConfigError(f"{place} could not be written ({error.strerror or error}{where}): {remedy}") from error
