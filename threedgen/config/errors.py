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
    return _rekeyed(lambda key: f"{section}.{key}")


def called(name: str) -> AbstractContextManager[None]:
    """Inside, the key of a ConfigError is called by another name, that of the caller's. Without a key it stays."""
    return _rekeyed(lambda key: name)


@contextmanager
def _rekeyed(rename: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        if not error.key:
            raise
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


def nearest_key(key: str, paths: Iterable[str]) -> str | None:
    """The dotted path most likely meant by the dotted `key`.

    A path with the very same last part wins (`max_steps` -> `trainer.max_steps`), then the most similar
    whole path, then the path with the most similar last part.
    """
    paths = list(paths)
    last = key.rpartition(".")[2]
    same_last = [path for path in paths if path.rpartition(".")[2] == last]
    by_last = {path.rpartition(".")[2]: path for path in reversed(paths)}
    found = nearest(key, same_last, cutoff=0.0) or nearest(key, paths, cutoff=0.7)
    return found or by_last.get(nearest(last, by_last) or "")


def did_you_mean(name: str | None) -> str:
    """`; did you mean 'name'?`, or nothing when there is no likely name."""
    return f"; did you mean '{name}'?" if name else ""


def short(value: Any, length: int = 80) -> str:
    """`repr(value)` cut to `length` characters; a text's control characters never reach the terminal."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."
