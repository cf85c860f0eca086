"""The one error a user's mistake raises, and the search for the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

_NOTHING = object()


class ConfigError(Exception):
    """A mistake in what the user gave: a config, a key, a value, a file, a folder.

    Its text, `key: problem (got value)`, is one sentence (or one line for each mistake) that can be shown as it is;
    the command line prints it without a traceback and exits with code 2. A key is that of the section which raises;
    who asks the section completes it (`within`).
    """

    def __init__(self, problem: str, key: str = "", got: Any = _NOTHING) -> None:
        self.problem = problem if got is _NOTHING else f"{problem} (got {short(got)})"
        self.key = key
        super().__init__(self.problem, key)  # what it is pickled by

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}" if self.key else self.problem


class AbsentWeights(ConfigError):
    """The weights of a released model are not on this machine; what it consists of is known all the same."""


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
    except ConfigError as error:
        raise type(error)(error.problem, rename(error.key)) from None


def in_a_line(error: BaseException) -> str:
    """What stood in the way, on one line; a ConfigError says it itself, others are named by their kind."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    text = " ".join(str(error).split())
    return text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}".rstrip(": ")


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
