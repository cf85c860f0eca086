"""What is checked of a prompt before any work starts, and what the user is told about it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from threedgen.config.errors import ConfigError

logger = logging.getLogger(__name__)

A_THING, A_ROOM = "a red penguin", "a blue room with a red sofa"
"""Prompts that the embedded weights can draw, for whoever gives none."""
_SHOWN = 8


class Reader(Protocol):
    """Whoever reads prompts: any prior (threedgen.guidance.prior says what its methods give)."""

    @property
    def identifiers(self) -> Sequence[str]: ...
    def tokens_cut(self, prompt: str) -> str: ...
    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]: ...


def tidy(prompt: str, key: str = "prompt", such_as: str = A_THING) -> str:
    """Makes a prompt one line without outer white space. Raises ConfigError with an example if nothing is visible."""
    text = " ".join(prompt.split())
    if not any(character.isprintable() for character in text.replace(" ", "")):
        raise ConfigError(f'is empty; say what to make, such as {key}="{such_as}"', key)
    return text


def with_suffix(prompt: str, suffix: str) -> str:
    """Appends `suffix` to a prompt, unless it says 3d already: MVDream's rule for captions of renders."""
    return prompt if "3d" in prompt.lower() else prompt + suffix


def without(prompt: str, words: Iterable[str]) -> str:
    """Takes these words out of a prompt, in upper or lower case: "a [v] dog" -> "a dog"."""
    for word in words:
        prompt = re.sub(re.escape(word), " ", prompt, flags=re.IGNORECASE)
    return " ".join(prompt.split())


def warn_about(prompt: str, prior: Reader, besides: Iterable[str] = ()) -> list[str]:
    """Logs and returns a sentence for each thing of which the prior will not take notice, and those of the caller.

    Line breaks, words that are cut off, words that it never saw (with the nearest ones that it did), and an
    identifier that is not asked for.
    """
    text, notes = tidy(prompt), []
    if len(prompt.strip().splitlines()) > 1:
        notes.append("the lines of the prompt are taken as one")
    cut = prior.tokens_cut(text)
    if cut:
        notes.append(f"the prompt is too long for this prior: everything from {_quoted(cut)} on has no effect")
    notes += unknown_note(prior.unknown_words(text.removesuffix(cut)))
    silent = [word for word in prior.identifiers if word.lower() not in text.lower()]
    if silent:
        notes.append(f"the prompt does not say {', '.join(silent)}, so it asks for the kind and not for the subject")
    notes += besides
    for note in notes:
        logger.warning("%s", note)
    return notes


def unknown_note(unknown: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Words a sentence on what a prior does not know, each word with the nearest ones that it does; none if there are
    none."""
    if not unknown:
        return []
    words = ", ".join(
        _quoted(word, 40) + (f" (nearest: {', '.join(near)})" if near else "") for word, near in unknown[:_SHOWN]
    )
    more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    return [f"this prior does not know {words}{more}; it goes on without {'it' if len(unknown) == 1 else 'them'}"]


def _quoted(text: str, length: int = 60) -> str:
    """Quotes `text`, cut to `length`; nothing in it reaches the terminal as a command."""
    return repr(text if len(text) <= length else f"{text[: length - 3]}...")
