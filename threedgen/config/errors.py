"""Errors that are shown without a traceback, and suggestions for misspelt names."""

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rapidfuzz import fuzz, process

_NOTHING = object()


class ExpectedError(Exception):
    """Base class of errors that the user can correct. The program prints their text, without a traceback, and exits.

    Attributes:
        exit_code: exit code of the program.
        problem: description of the mistake, with the wrong value.
        key: dotted config key of the wrong value, such as "trainer.devices"; "" if the mistake is not in a config
            value. The code of a section (nested config) sets only the key in the section, "devices"; its caller adds
            "trainer." with `key_prefix`.
    """

    exit_code = 2

    def __init__(self, problem: str, key: str = "", got: object = _NOTHING) -> None:
        self.problem = problem if got is _NOTHING else f"{problem} (got {short(got)})"
        self.key = key
        super().__init__(self.problem, key)  # pickle passes these arguments to __init__

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}" if self.key else self.problem


class ConfigError(ExpectedError):
    """Error for a mistake in the user's config, arguments, files or folders."""


class WeightsNotDownloaded(ConfigError):
    """Error for a published model, such as MVDream, that is supported but not downloaded to this machine."""


class FileError(ConfigError):
    """Error for a file that is missing, damaged, of another format, or cannot be read or written."""


class DiskFull(ExpectedError):
    """Error for a full disk."""

    exit_code = 3


class OutOfMemory(ExpectedError):
    """Error for too little memory of the machine or of a GPU."""

    exit_code = 4


class WorkerLost(ExpectedError):
    """Error for a process of a parallel run that died and cannot be replaced, or a Ray cluster that does not answer."""

    exit_code = 5


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
STORAGE_ERRORS = (*NO_SPACE, errno.EIO, errno.EROFS, errno.ESTALE)
"""Error numbers (errno) of a full, broken, read-only or vanished disk. Other numbers concern a single file."""
_NO_MEMORY = re.compile("cannot allocate memory|failed to map segment", re.IGNORECASE)
"""Pattern of two out-of-memory messages: of torch's allocator, and of the system when it loads a library."""


def storage_error(error: BaseException) -> OSError | None:
    """Return the OSError of a full or failed disk, if it is `error` or in its chain of causes; else None.

    A failed disk is broken, read-only or vanished.
    """
    errors = (one for one in _chain(error) if isinstance(one, OSError))
    return next((one for one in errors if one.errno in STORAGE_ERRORS), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def as_expected_error(error: BaseException) -> ExpectedError | None:
    """Convert an exception to the ExpectedError that the user sees.

    An OSError of a full disk becomes DiskFull, of a failed disk FileError, and an out-of-memory error OutOfMemory. An
    ExpectedError is returned unchanged. For any other exception, the result is None: it counts as a bug, and the user
    sees its traceback.
    """
    if isinstance(error, ExpectedError):
        return error
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        place = f": {error.filename}" if error.filename else ""
        if error.errno in NO_SPACE:
            return DiskFull(f"the disk is full ({error.strerror}){place}. Make room and run the same command again")
        return FileError(f"the disk failed ({error.strerror}){place}. Check it and run the same command again")
    reason = next((one for one in _chain(error) if _NO_MEMORY.search(str(one))), None)
    if reason or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the last one of torch
        detail = str(reason or error).partition("\n")[0]
        return OutOfMemory(f"out of memory ({detail}). Use smaller sizes, or a machine with more memory")
    return None


def key_prefix(section: str) -> AbstractContextManager[None]:
    """Return a context manager that puts `section` and a dot before the config key of an ExpectedError raised in it.

    The section "trainer" changes the key "devices" to "trainer.devices". An empty key stays empty.
    """
    return _rekeyed(lambda key: key and f"{section}.{key}")


def errors_name_key(name: str) -> AbstractContextManager[None]:
    """Return a context manager that changes the config key of an ExpectedError raised in its `with` block to `name`.

    It is used around functions whose errors have their own key, such as "path", although the user set the value by the
    config key `name`. An error without a key stays without one.
    """
    return _rekeyed(lambda key: key and name)


def errors_default_to_key(name: str) -> AbstractContextManager[None]:
    """Return a context manager that gives an ExpectedError raised in its `with` block the key `name` if it has none.

    It is used around functions that do not know which config key gave them their input.
    """
    return _rekeyed(lambda key: key or name)


@contextmanager
def _rekeyed(rename: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except ExpectedError as error:
        raise type(error)(error.problem, rename(error.key)) from None


def one_line(error: BaseException) -> str:
    """Return an exception as one line: "ClassName: message".

    For an ExpectedError the line is only its message, and for a KeyboardInterrupt "stopped by Ctrl-C".
    """
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    text = " ".join(str(error).split())
    return text if isinstance(error, ExpectedError) else f"{type(error).__name__}: {text}".rstrip(": ")


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the text in `choices` that is most similar to `word`, ignoring case, to correct a misspelt name.

    A similarity is between 0 and 1 (equal). Returns None if all are below `cutoff`.
    """
    found = process.extractOne(word, list(choices), scorer=fuzz.ratio, processor=str.lower, score_cutoff=100 * cutoff)
    return found[0] if found else None


ALIASES = {
    "lr": ("learning_rate", "optimizer.encoding", "optimizer.networks"),
    "learning_rate": ("optimizer.encoding", "optimizer.networks"),
    "batch_size": ("training.batch", "camera.n_view", "scenes_per_step"),
    "fp16": ("trainer.precision", "prior.dtype"),
    "gpu": ("trainer.accelerator", "trainer.devices"),
    "image": ("photos",),
    "images": ("photos", "image", "views"),
    "photo": ("photos", "image"),
    "photos": ("image", "views"),
    "resolution": ("resolution", "texture", "image_size"),
} | {
    word: (ending,)
    for ending, words in {
        "trainer.max_steps": "steps iterations iters epochs max_epochs",
        "trainer.accumulate_grad_batches": "gradient_accumulation_steps",
        "trainer.accelerator": "device cpu",
        "trainer.devices": "gpus num_nodes",
        "checkpoint.seconds": "save_top_k every_n_train_steps",
        "out": "output outdir output_dir folder exp_root_dir tag",
        "start": "system.weights",
        "weights": "pretrained_model_name_or_path",
        "preset": "low_vram",
        "prior.name": "guidance_type",
        "prior.dtype": "half_precision_weights",
        "field.name": "geometry geometry_type",
        "guidance_scale": "cfg cfg_scale",
        "prompt": "instance_prompt",
        "negative_prompt": "negative",
        "photos": "instance_data_dir",
        "tuning.preservation": "with_prior_preservation",
        "image_fov": "fov",
        "image_size": "prior.size",
        "size": "data.width data.height",
        "matte": "mask remove_background",
        "budget": "triangles tris polygons faces polycount max_triangles max_faces",
        "texture": "texture_size",
        "collision": "collider colliders",
        "palette": "color colour colors",
        "style": "palette",
    }.items()
    for word in words.split()
}
"""Dict from an unknown key or its last part, such as "lr", to endings of the known keys that the user may mean."""
MAX_SUGGESTIONS = 4


def nearest_keys(key: str, paths: Iterable[str]) -> list[str]:
    """Return the known config keys in `paths` that the user may mean by the unknown `key`, likeliest first, at most 4.

    Keys are dotted: "trainer.max_steps" has the section "trainer" and the last part "max_steps". Similar texts differ
    in a few letters (see `nearest`). The first case that applies counts:

    1. Known keys have the same last part as `key`, or end with a synonym of it ("learning_rate" for "lr", see
       `ALIASES`): return them, synonyms first; if `ALIASES` has the whole `key`, only the synonyms. If the section of
       `key` is similar to some of their sections, return only those in the most similar one.
    2. Known keys, with their sections, are similar to `key`: return the most similar one.
    3. Only the last part of known keys is similar to that of `key`: return the one with the most similar last part.
    4. Otherwise: return [].
    """
    paths = list(paths)
    section, _, last = key.rpartition(".")
    endings = (section and ALIASES.get(key)) or (*ALIASES.get(last, ()), last)
    if same_last := [path for ending in endings for path in paths if f".{path}".endswith(f".{ending}")]:
        sections = {path: path.rpartition(".")[0] for path in same_last}
        near = nearest(section, sections.values())
        return [path for path, its in sections.items() if near in (its, None)][:MAX_SUGGESTIONS]
    by_last = {path.rpartition(".")[2]: path for path in reversed(paths)}
    found = nearest(key, paths, cutoff=0.7) or by_last.get(nearest(last, by_last, cutoff=0.75) or "")
    return [found] if found else []


def did_you_mean(*names: str | None) -> str:
    """Return "; did you mean 'name' or 'other'?" for the names that are not None; "" if there are none."""
    known = " or ".join(f"'{name}'" for name in names if name)
    return f"; did you mean {known}?" if known else ""


def printable(value: object, length: int = 200) -> str:
    """Return `str(value)` for a message, cut to at most `length` characters; "..." at the end marks a cut.

    If the text has characters that are not printable, these and all characters outside ASCII are escaped.
    """
    text = str(value)
    text = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= length else text[: length - 3] + "..."


def short(value: object, length: int = 80) -> str:
    """Return `repr(value)`, or `ascii(value)` for a str that is not printable, cut to at most `length` characters.

    "..." at the end marks a cut.
    """
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
