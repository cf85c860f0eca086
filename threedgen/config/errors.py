"""Errors that are shown without a traceback, and the search for the name that was meant."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rapidfuzz import fuzz, process

_NOTHING = object()


class ExpectedError(Exception):
    """Error that the command line shows without a traceback, and ends with `exit_code`.

    Its text, `key: problem (got value)`, is one sentence, or one line per mistake. A key is relative to the section
    that raises; the caller completes it (`within`).
    """

    exit_code = 2

    def __init__(self, problem: str, key: str = "", got: object = _NOTHING) -> None:
        self.problem = problem if got is _NOTHING else f"{problem} (got {short(got)})"
        self.key = key
        super().__init__(self.problem, key)  # pickled by these

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}" if self.key else self.problem


class ConfigError(ExpectedError):
    """A mistake in a config, a key, a value, a file or a folder of the user."""


class AbsentWeights(ConfigError):
    """The weights of a released model are not on this machine, but its architecture is known."""


class FileError(ConfigError):
    """A file is missing, damaged, of another format, or cannot be read or written."""


class DiskFull(ExpectedError):
    """There is no room on a disk."""

    exit_code = 3


class OutOfMemory(ExpectedError):
    """The memory of the machine or of a GPU is too small."""

    exit_code = 4


class WorkerLost(ExpectedError):
    """Worker processes died repeatedly."""

    exit_code = 5


def expected(error: BaseException) -> ExpectedError | None:
    """Return the error to show to the user: itself, a full disk or exhausted memory; None for a bug."""
    if isinstance(error, ExpectedError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f": {error.filename}" if error.filename else ""
        return DiskFull(f"the disk is full{place}. Make room there and run the same command again")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        detail = str(error).partition("\n")[0]
        return OutOfMemory(f"out of memory ({detail}). Use smaller sizes, or a machine with more memory")
    return None


def within(section: str) -> AbstractContextManager[None]:
    """Prefix the key of an ExpectedError with a section; leave an empty key."""
    return _rekeyed(lambda key: key and f"{section}.{key}")


def called(name: str) -> AbstractContextManager[None]:
    """Replace the key of an ExpectedError; leave an empty key."""
    return _rekeyed(lambda key: key and name)


def keyed(name: str) -> AbstractContextManager[None]:
    """Set the key of an ExpectedError that has none, such as the key by which a file was given."""
    return _rekeyed(lambda key: key or name)


@contextmanager
def _rekeyed(rename: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except ExpectedError as error:
        raise type(error)(error.problem, rename(error.key)) from None


def in_a_line(error: BaseException) -> str:
    """Return an error in one line: the text of an ExpectedError, otherwise class and text."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    text = " ".join(str(error).split())
    return text if isinstance(error, ExpectedError) else f"{type(error).__name__}: {text}".rstrip(": ")


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the choice most similar to `word`, ignoring case; None if none reaches `cutoff` in [0, 1]."""
    found = process.extractOne(word, list(choices), scorer=fuzz.ratio, processor=str.lower, score_cutoff=100 * cutoff)
    return found[0] if found else None


ALIASES = {
    "steps": ("trainer.max_steps",),
    "iterations": ("trainer.max_steps",),
    "lr": ("learning_rate", "optimizer.encoding", "optimizer.networks"),
    "learning_rate": ("optimizer.encoding", "optimizer.networks"),
}
"""Last part of a mistyped key -> endings of keys that may be meant."""
MAX_SUGGESTIONS = 4


def nearest_keys(key: str, paths: Iterable[str]) -> list[str]:
    """Return the dotted paths that may be meant by a dotted key, likeliest first.

    Paths with the same last part win (`max_steps` -> `trainer.max_steps`), those of the most similar section if there
    are several; then the most similar whole path, then the path with the most similar last part.
    """
    paths = list(paths)
    section, _, last = key.rpartition(".")
    endings = (*ALIASES.get(last, ()), last)
    if same_last := [path for ending in endings for path in paths if f".{path}".endswith(f".{ending}")]:
        sections = {path: path.rpartition(".")[0] for path in same_last}
        near = nearest(section, sections.values())
        return [path for path, its in sections.items() if near in (its, None)][:MAX_SUGGESTIONS]
    by_last = {path.rpartition(".")[2]: path for path in reversed(paths)}
    found = nearest(key, paths, cutoff=0.7) or by_last.get(nearest(last, by_last, cutoff=0.75) or "")
    return [found] if found else []


def did_you_mean(*names: str | None) -> str:
    """Return `; did you mean 'name' or 'other'?`, or nothing without names."""
    known = " or ".join(f"'{name}'" for name in names if name)
    return f"; did you mean {known}?" if known else ""


def short(value: object, length: int = 80) -> str:
    """Return `repr(value)` cut to `length` characters, with control characters escaped."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
