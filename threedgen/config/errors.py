"""The one error a user's mistake raises, and the search for the name that was meant."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

_NOTHING = object()


class ExpectedError(Exception):
    """Error that the command line shows without a traceback, and ends with `exit_code`.

    Its text, `key: problem (got value)`, is one sentence (or one line for each mistake). A key is relative to the
    section that raises; the caller completes it (`within`).
    """

    exit_code = 2

    def __init__(self, problem: str, key: str = "", got: Any = _NOTHING) -> None:
        self.problem = problem if got is _NOTHING else f"{problem} (got {short(got)})"
        self.key = key
        super().__init__(self.problem, key)  # pickled by these

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}" if self.key else self.problem


class ConfigError(ExpectedError):
    """A mistake in a config, a key, a value, a file or a folder of the user."""


class AbsentWeights(ConfigError):
    """The weights of a released model are not on this machine; what it consists of is known all the same."""


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
    """Inside, the key of a ConfigError is one of a section: it is completed by its name. Without a key it stays."""
    return _rekeyed(lambda key: key and f"{section}.{key}")


def called(name: str) -> AbstractContextManager[None]:
    """Inside, the key of a ConfigError is called by another name, that of the caller's. Without a key it stays."""
    return _rekeyed(lambda key: key and name)


def keyed(name: str) -> AbstractContextManager[None]:
    """Inside, a ConfigError without a key, such as one of a file, gets this one: that by which the file was given."""
    return _rekeyed(lambda key: key or name)


@contextmanager
def _rekeyed(rename: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except ExpectedError as error:
        raise type(error)(error.problem, rename(error.key)) from None


def in_a_line(error: BaseException) -> str:
    """What stood in the way, on one line; a ConfigError says it itself, others are named by their kind."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    text = " ".join(str(error).split())
    return text if isinstance(error, ExpectedError) else f"{type(error).__name__}: {text}".rstrip(": ")


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice most like `word`, upper and lower case alike; None if none reaches `cutoff` in [0, 1]."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


MEANT = {
    "steps": ("trainer.max_steps",),
    "iterations": ("trainer.max_steps",),
    "lr": ("learning_rate", "optimizer.encoding", "optimizer.networks"),
    "learning_rate": ("optimizer.encoding", "optimizer.networks"),
}
"""What a word may mean besides the keys of this name: what the keys end in."""
MOST = 4
"""Keys that are named for one that there is not."""


def nearest_keys(key: str, paths: Iterable[str]) -> list[str]:
    """The dotted paths that may be meant by the dotted `key`, likeliest first; none if there is nothing near.

    Paths with the very same last part win (`max_steps` -> `trainer.max_steps`), of several those of the section most
    like that of the key; then the most similar whole path, then the path with the most similar last part.
    """
    paths = list(paths)
    section, _, last = key.rpartition(".")
    endings = (*MEANT.get(last, ()), last)
    if same_last := [path for ending in endings for path in paths if f".{path}".endswith(f".{ending}")]:
        sections = {path: path.rpartition(".")[0] for path in dict.fromkeys(same_last)}
        near = nearest(section, sections.values())
        return [path for path, its in sections.items() if near in (its, None)][:MOST]
    by_last = {path.rpartition(".")[2]: path for path in reversed(paths)}
    found = nearest(key, paths, cutoff=0.7) or by_last.get(nearest(last, by_last, cutoff=0.75) or "")
    return [found] if found else []


def did_you_mean(*names: str | None) -> str:
    """`; did you mean 'name' or 'other'?`, or nothing when there is no likely name."""
    known = " or ".join(f"'{name}'" for name in names if name)
    return f"; did you mean {known}?" if known else ""


def short(value: Any, length: int = 80) -> str:
    """`repr(value)` cut to `length` characters; a text's control characters never reach the terminal."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
