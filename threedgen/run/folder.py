"""Run folders: choice and creation of the folder, its config.yaml, and comparison of configs.

    config.yaml     complete config, with the name of the original config in the first line. It reproduces the run,
                    unless the number of steps was changed on resume.
    metrics.jsonl   one line for each logged step, also as metrics.csv
    summary.json    time, memory, versions, seed
    checkpoints/    states to resume from

Imports no torch: the folder is chosen and printed before the slow imports.
"""

import hashlib
import logging
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import BaseModel

from threedgen.config import COMMAND_LINE, help, load, merge, plain, shipped, yaml_text
from threedgen.config.command import command
from threedgen.config.errors import ConfigError, short
from threedgen.config.fields import nested
from threedgen.config.plain_file import read_json, read_text
from threedgen.config.scheduled import is_schedule
from threedgen.run.disk import TEMPORARY_NAME, Tree, prepare, write_atomic, writing
from threedgen.run.lock import NAME as LOCK
from threedgen.run.lock import acquire, has_locks, was_released
from threedgen.run.options import is_rank_zero

logger = logging.getLogger(__name__)

CONFIG, SUMMARY, CHECKPOINTS = "config.yaml", "summary.json", "checkpoints"
JOB = "job.json"  # record of the task `batch` about a run that it started
PRESET = "preset.json"  # memory preset that a run of the task `generate` chose
MAX_STEPS_KEY = "trainer.max_steps"
ROOT = Path("outputs")
NAME_WITHOUT_PROMPT = "run"  # name of the run folder if the config has no prompt
NEUTRAL_KEYS = (
    "about needs out threads prompt_check trainer.max_steps trainer.log_every_n_steps trainer.val_check_interval "
    "checkpoint export march.chunk prior.cuda_graph validation logging logger "
    "trainer.accelerator trainer.devices "
    "engine workers address cpus gpus attempts"
).split()
"""Config keys and sections that may change when a run is resumed. Two changes still affect results: another accelerator
changes their last bits, and another number of devices changes the batch; `train.checkpoint` warns about both."""

MAX_LISTED = 6  # maximum number of changed keys that a message names

C = TypeVar("C", bound=BaseModel)


def slug(text: str) -> str:
    """Return a folder name for any text: a-z, 0-9 and '-', at most 69 characters, such as "a-red-penguin-22d56f64".

    The name consists of the text in ASCII without accents ("prompt" if nothing is left), a '-', and the first 8 hex
    digits of the text's SHA-256.
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")[:60].strip("-")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{words or 'prompt'}-{digest[:8]}"


def stored_config(folder: Path) -> Tree | None:
    """Return the config.yaml in a run folder as nested dicts; None if the file does not exist.

    Raises ConfigError if the file cannot be read or contains no dict, as it may then be a file of the user.
    """
    path = folder / CONFIG
    if not os.path.lexists(path):
        return None
    tree = yaml_text.read(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is not the config of a run: it contains {short(tree)}. Choose another folder")
    return tree


def flat(tree: object, prefix: str = "") -> Tree:
    """Convert nested dicts to one dict with dotted keys: {"a": {"b": 1}} to {"a.b": 1}.

    These inner dicts stay as they are: empty ones, those with other keys than str, and schedules, which give an option
    different values by training step ({step: value}). If `prefix` is set, all keys start with it and a dot.
    """
    if not tree or not isinstance(tree, dict) or is_schedule(tree) or not all(isinstance(key, str) for key in tree):
        return {prefix: tree}
    return {
        path: value
        for key, inner in tree.items()
        for path, value in flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def differences(old: Tree, new: Tree, changeable: Iterable[str] = ()) -> list[str]:
    """Return the differences of two configs that change the result of a run, as texts "key: old -> new".

    `old` and `new` are nested dicts. Keys that may change when a run is resumed are ignored: those in `NEUTRAL_KEYS`,
    such as "out", for all tasks, and those in `changeable` for the task of the configs. If more than 6 keys differ
    (MAX_LISTED), the last text is "and N more".
    """
    before, after, neutral = flat(old), flat(new), (*NEUTRAL_KEYS, *changeable)
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    keys = [key for key in changed if not any(key == name or key.startswith(f"{name}.") for name in neutral)]
    keys.sort(key=lambda key: not key.endswith(".name"))  # another name changes all other keys of its section
    more = [f"and {len(keys) - MAX_LISTED} more"] if len(keys) > MAX_LISTED else []
    return [f"{key}: {short(before.get(key))} -> {short(after.get(key))}" for key in keys[:MAX_LISTED]] + more


def how_to_make(path: str) -> str:
    """Return a note for the user: the command that writes the file `path`, and its requirements, such as a GPU.

    The note exists only for the folder outputs/CONFIG/run and the files in it, where CONFIG is the name of a config
    that comes with the project. A run of such a config without prompt writes to this folder by default. For other
    paths, the result is "".
    """
    parts = Path(path).parts
    if parts[:1] != ROOT.parts or parts[2:3] != (NAME_WITHOUT_PROMPT,) or parts[1] not in shipped():
        return ""
    return f"`{command('--config', parts[1])}` writes it (needs: {help.shipped_entry(parts[1]).needs})"


def user_path(text: str | Path, key: str) -> Path:
    """Return a path with `~` expanded. Raises ConfigError with the config key `key` if the path is not valid."""
    try:
        path = Path(text).expanduser()
        if str(text).strip():
            path.stat()  # raises for a name that is too long or contains NUL
            return path
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (OSError, RuntimeError, ValueError):
        pass
    raise ConfigError("should be the path of a folder", key, str(text))


def existing_folder(text: str | Path, key: str) -> Path:
    """Return the path of an existing folder, with `~` expanded.

    Raises ConfigError, with the config key `key`, if the folder does not exist.
    """
    folder = user_path(text, key)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {short(str(text), 300)}", key)
    return folder


def config_name(path: Path) -> str:
    """Return the name of a config file: the file name without suffix, such as "fast" for fast.yaml.

    A file config.yaml is the config of a run, so the result is the name of its folder, the run folder.
    """
    return path.resolve().parent.name if path.name == CONFIG else path.stem


def _own_folder(config: BaseModel, config_name: str) -> Path:
    # outputs/CONFIG/SLUG, where SLUG is made from the prompt or the name of the mesh file, with -2, -3, ... if
    # this folder belongs to another run. Runs with equal configs and numbers of steps share a folder, those of a batch
    # also with other `changeable_on_resume`. The folder of a run that failed without results is reused.
    prompt, mesh = getattr(config, "prompt", None), getattr(config, "mesh", None)
    if isinstance(mesh, str) and not str(prompt or "").strip():
        prompt = Path(mesh).stem
    name = slug(prompt) if isinstance(prompt, str) else NAME_WITHOUT_PROMPT
    parent = ROOT / (re.sub(r"[^A-Za-z0-9_-]+", "-", config_name).strip("-")[:60] or "config")
    expected = plain(config)
    changeable = getattr(config, "changeable_on_resume", ()) if getattr(config, "shares_default_folder", False) else ()
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        with suppress(ConfigError):
            stored = stored_config(folder)
            starts = is_rank_zero() and (folder / LOCK).exists()  # a run locks its folder before it writes config.yaml
            if not has_results(folder) and (was_released(folder) or stored is None and not starts):
                break
            if stored is None:
                continue
            same_steps = flat(stored).get(MAX_STEPS_KEY) == flat(expected).get(MAX_STEPS_KEY)
            if same_steps and not differences(stored, expected, changeable):
                break
    return folder


def choose_folder(config: BaseModel, config_name: str) -> tuple[Path, Tree | None]:
    """Choose, but do not create, the folder of a run, and decide whether an earlier run in this folder is resumed.

    With `config.out`, the folder is given. Without it, the folder is in outputs/CONFIG_NAME and has the first usable
    name of NAME, NAME-2, NAME-3, ... NAME is made from the prompt or the name of the mesh file ("run" without both). A
    name is usable if its folder

    - has no results (files that `has_results` counts), and no run that is still running or was killed, or
    - has a run whose config.yaml equals `config` apart from `NEUTRAL_KEYS`, such as out and threads, and with
      `config.shares_default_folder` also apart from `config.changeable_on_resume`. trainer.max_steps is one of these
      keys, but must be equal here: another number of steps gets another folder.

    In the folder, given or not, a run is resumed if its config.yaml equals `config` apart from keys that may change on
    resume: `NEUTRAL_KEYS`, here including trainer.max_steps, and `config.changeable_on_resume`. Otherwise the run is
    new. An old config.yaml will then be replaced, but results never are.

    Returns:
        The folder, and the content of its config.yaml as nested dicts if the run in it is resumed, None if the run is
        new.

    Raises:
        ConfigError: the folder `config.out` has results, but no run that can be resumed, or its config.yaml cannot be
            read or was not written by a run.
    """
    out = getattr(config, "out", None)
    folder = _own_folder(config, config_name) if out is None else user_path(out, "out")
    stored, work = stored_config(folder), has_results(folder)
    if stored is None and work:
        raise ConfigError("contains files that do not belong to a run. Choose a new folder", "out", str(out))
    changed = [] if stored is None else differences(stored, plain(config), getattr(config, "changeable_on_resume", ()))
    if changed and work:
        raise ConfigError(f"{folder} contains a run of another config: {'; '.join(changed)}. Choose another out=")
    # a run locks its folder first (not on Windows), and writes all keys to config.yaml
    if stored is not None and changed and not (folder / LOCK).exists() and not plain(config).keys() <= stored.keys():
        raise ConfigError(f"{folder / CONFIG} belongs to no run and would be replaced. Choose another out=")
    return folder, None if changed else stored


def open_run(config: C, config_name: str) -> tuple[C, Path | None]:
    """Create and lock the folder of a new or resumed run, and write its config.yaml.

    The folder is `config.out` or, if this is None, a folder in outputs/CONFIG_NAME (see `choose_folder`). If the folder
    has a run whose config differs from `config` at most in keys that may change on resume, such as trainer.max_steps,
    this run is resumed. The old config.yaml is kept if the run already has more steps than `config` asks for, or is
    finished with these steps.

    `config_name` is the name of the config, such as "fast"; it is also written to line 1 of config.yaml. Returns the
    config with `out` set to the folder, and the folder if the run is resumed, None if it is new. Raises ConfigError if
    the folder has results of another run or files that are not from a run, cannot be written, or is used by another
    process, and DiskFull if the disk is (almost) full.
    """
    folder, stored = choose_folder(config, config_name)
    try:
        config = _prepare_folder(folder, config, config_name, stored)
    except ConfigError:
        if choose_folder(config, config_name)[0] == folder:
            raise
        return open_run(config, config_name)  # another run has taken the folder in the same moment
    return config, None if stored is None else folder


def on_one_device(config: C) -> C:
    """Return the config of a run inside another run, changed to train on one device, if it trains at all.

    For several devices Lightning starts this process's command again, which would repeat the outer run.
    """
    trainer = getattr(config, "trainer", None)
    if trainer is None:
        return config
    return config.model_copy(update={"trainer": trainer.model_copy(update={"devices": 1})})


def has_results(folder: Path) -> bool:
    """Return whether a run folder or its subfolders have results.

    A result is any file except config.yaml, job.json (written by the task `batch`), preset.json (chosen memory preset),
    temporary files, hidden files such as the lock file and macOS's .DS_Store, and the like of Windows.
    """
    files = (name for _, _, names in os.walk(folder) for name in names)
    others = (CONFIG, JOB, PRESET, "Thumbs.db", "desktop.ini")
    return any(name not in others and name[0] != "." and not TEMPORARY_NAME.search(name) for name in files)


def steps_done(folder: Path) -> int:
    """Return the number of optimisation steps in the summary.json of a run folder; 0 if the file is missing."""
    steps = read_json(folder / SUMMARY).get("steps")
    return steps if type(steps) is int else 0


def finished(folder: Path, max_steps: int | None = None) -> bool:
    """Return whether a folder has a finished run of at least `max_steps` steps (None: any), with all result files.

    The status, the steps and the list of result files are read from summary.json.
    """
    summary = read_json(folder / SUMMARY)
    complete = summary.get("status") == "finished" and steps_done(folder) >= (max_steps or 0)
    files = summary.get("files", [])
    return complete and isinstance(files, list) and all((folder / str(name)).exists() for name in files)


def _prepare_folder(folder: Path, config: C, config_name: str, stored: Tree | None) -> C:
    # config.yaml is not written if the run already has more steps than `config`, or is finished with these steps
    prepare(folder)
    if acquire(folder) or not has_locks() and is_rank_zero():
        remove_temporary_files(folder, recursive=True)
    if stored is None:
        (folder / PRESET).unlink(missing_ok=True)  # of a run that failed before any work
    old_steps, max_steps = (flat(tree).get(MAX_STEPS_KEY) for tree in (stored or {}, plain(config)))
    is_done = old_steps == max_steps and finished(folder, max_steps)
    if max_steps is None or max_steps >= steps_done(folder) and not is_done:
        write_config(folder, config, config_name)
        if old_steps not in (None, max_steps) and has_results(folder):
            text = "%s: %s -> %s. Schedules in percent now refer to the new number of steps"
            logger.warning(text, MAX_STEPS_KEY, old_steps, max_steps)
    return config.model_copy(update={"out": str(folder)})


def run_folder(run: str | Path, key: str = "--resume") -> Path:
    """Return the folder of a run. `run` is the path of the folder, or of a file in the folder.

    Raises ConfigError, with the config key `key`, if the folder has no config.yaml.
    """
    folder = user_path(run, key)
    folder = folder.parent if folder.is_file() else folder
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"should be the folder of a run, with a {CONFIG} in it", key, str(run))
    return folder


def reopen(run: str | Path, overrides: list[str]) -> tuple[Any, Path]:
    """Load the config of an old run, apply overrides "key=value" and lock the folder, to resume the run.

    `run` is the run folder or a file in it. Returns the config with `out` set to the folder, and the folder. Raises
    ConfigError if another process uses the folder, if an override changes a key that may not change on resume or sets
    `out` to another folder, or if the run cannot start (`config.check`); config.yaml is then unchanged. Keys that may
    change: those in `NEUTRAL_KEYS`, such as trainer.max_steps, and `resume_keys`.
    """
    folder = run_folder(run)
    config, stored = load((folder / CONFIG).resolve(), overrides), stored_config(folder)
    out = getattr(config, "out", None)
    if out is not None and user_path(out, "out").resolve() != folder.resolve():
        raise ConfigError("a resumed run stays in its folder. Copy the folder first, or remove out", "out", out)
    changed = differences(stored or {}, plain(config), resume_keys(config))
    if changed:
        again = f"Start a new run with {command('--config', str(folder / CONFIG))}"
        if getattr(config, "training", None) is not None:
            finish = command("--resume", str(run), "--finish")
            again += f". To start it from the weights so far, write them with {finish}"
        raise ConfigError(f"{COMMAND_LINE}: a resumed run cannot change {'; '.join(changed)}. {again}")
    config.check()
    name = stored_config_name(read_text(folder / CONFIG))
    return _prepare_folder(folder, config, name, stored), folder


def resume_keys(config: Any) -> tuple[str, ...]:
    """Return the keys that --resume may change in addition to `NEUTRAL_KEYS`; () for a config without such keys."""
    return (*getattr(config, "changeable_on_resume", ()), *getattr(config, "movable_inputs", ()))


def write_config(folder: Path, config: BaseModel, config_name: str = "") -> None:
    """Write `folder`/config.yaml, with `config_name` as a comment in line 1 ("": without this line).

    The key `out` is written as null, so that the folder can be moved.
    """
    _write_config(folder, plain(config), config_name)


def _write_config(folder: Path, tree: Tree, config_name: str) -> None:
    first = f"# {' '.join(config_name.split())}\n" if config_name else ""
    with writing(folder):
        write_atomic(folder / CONFIG, first + yaml_text.write(tree | {"out": None}))


def restore_keys(folder: Path, config: Any, old_config: str, keys: Iterable[str]) -> None:
    """Set `keys`, such as trainer.max_steps, in `folder`/config.yaml to their old values, after a refused resume.

    `config` is the refused config of the run, and `old_config` the YAML text of the config in its checkpoint. Nothing
    is written if the file does not exist, `old_config` has none of the keys, or this process is not rank 0.
    """
    if not is_rank_zero():
        return
    before = flat(yaml_text.parse(old_config, "the config in the checkpoint"))
    found = [key for key in keys if key in before]
    if found and (folder / CONFIG).is_file():
        tree = plain(config)
        for key in found:
            tree = merge(tree, nested(tuple(key.split(".")), before[key]))
        _write_config(folder, tree, stored_config_name(read_text(folder / CONFIG)))


def stored_config_name(text: str) -> str:
    """Return the config name in line 1 of `text`, the content of a config.yaml; "" if line 1 is no comment."""
    first = text.partition("\n")[0]
    return first[1:].strip() if first.startswith("#") else ""


def remove_temporary_files(folder: Path, recursive: bool = False) -> None:
    """Remove temporary files that killed processes left in a folder. Raises OSError if a file cannot be removed.

    Without file locks (Windows), those of running processes are kept: a folder may have several. If `recursive` is
    True, all subfolders except the folders of other runs are searched too.
    """
    for parent, folders, names in os.walk(folder):
        for name in filter(TEMPORARY_NAME.search, folders + names):
            if not has_locks() and psutil.pid_exists(int(name.split(".")[-3])):
                continue
            path = Path(parent, name)
            shutil.rmtree(path) if name in folders else path.unlink(missing_ok=True)
        subfolders = (name for name in folders if recursive and not TEMPORARY_NAME.search(name))
        folders[:] = [name for name in subfolders if not Path(parent, name, CONFIG).exists()]
