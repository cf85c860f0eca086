"""Checks of prompts and warnings about them before the work starts."""

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from threedgen.config.errors import ConfigError

logger = logging.getLogger(__name__)

EXAMPLE_OBJECT, EXAMPLE_ROOM = "a red penguin", "a blue room with a red sofa"  # words that the embedded models know
PREPOSITIONS = set(
    "on onto upon under underneath below beneath above over behind beside besides near by at to into from through "
    "between among around against across along towards for like as atop out off".split()
)
"""Words that end the description of an object. Mostly another object follows, such as "on a sofa"."""
_MAX_LISTED = 8


@dataclass
class Reading:
    """Prompt rewritten with the words of a closed vocabulary: the only words that a text encoder knows.

    Attributes:
        text: the prompt in known words; unchanged if all words are known.
        replaced: word of the prompt -> known synonym that replaces it.
        ignored: unknown words and the known words that belong to them, such as their colours, in the order of the
            prompt. They are left out.
        negated: known words after "without" or "no". They are left out, as the text encoder does not understand
            negations.
    """

    text: str
    replaced: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    negated: list[str] = field(default_factory=list)


class PromptReader(Protocol):
    """Protocol with one attribute and three methods of a prior (diffusion model), which the prompt checks use.

    identifiers              attribute: words, such as "[v]", for the objects that the prior was tuned for (DreamBooth)
    tokens_cut(prompt)       returns the end of the prompt, in words that the prior knows, that exceeds the token limit
    unknown_words(prompt)    returns a pair (word, similar known words) for each word that the prior does not know
    read_prompt(prompt)      returns a `Reading`: the prompt in words that the prior knows, and which words were changed

    A prior that takes any text has no unknown words, and its readings change nothing.
    """

    @property
    def identifiers(self) -> Sequence[str]: ...
    def tokens_cut(self, prompt: str) -> str: ...
    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]: ...
    def read_prompt(self, prompt: str) -> Reading: ...


def normalise_prompt(prompt: str, key: str = "prompt", example: str = EXAMPLE_OBJECT) -> str:
    """Return a prompt on one line, with single spaces.

    Raises ConfigError if the prompt is empty. The message names the config key `key` and suggests the prompt `example`.
    """
    text = " ".join(prompt.split())
    if not any(character.isprintable() for character in text.replace(" ", "")):
        raise ConfigError(f'is empty. Set it, for example {key}="{example}"', key)
    return text


def with_suffix(prompt: str, suffix: str) -> str:
    """Append `suffix` to a prompt unless the prompt contains "3d" or "3D". MVDream does this with ", 3d asset"."""
    return prompt if "3d" in prompt.lower() else prompt + suffix


def remove_words(prompt: str, words: Iterable[str]) -> str:
    """Return a prompt without the words in `words`, ignoring case: "a [v] dog" -> "a dog" for ["[v]"]."""
    for word in words:
        prompt = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", " ", prompt, flags=re.IGNORECASE)
    return " ".join(prompt.split())


def prompt_warnings(
    prompt: str, prior: PromptReader, more: Iterable[str] = (), used_word: str = "", takes_negative: bool = True
) -> list[str]:
    """Check a prompt for a prior (diffusion model). Log and return the warnings, followed by the caller's own, `more`.

    There are warnings if lines of the prompt are joined, if its end is cut off, if words are unknown, replaced by
    synonyms or negated, and if the word for the object that the prior was tuned for (DreamBooth), such as "[v]", is
    missing. `used_word` is a word that sets the material of the asset, whether or not the prior knows it.
    `takes_negative` is whether the task has the option `negative_prompt`.
    """
    text, notes = normalise_prompt(prompt), []
    if len(prompt.strip().splitlines()) > 1:
        notes.append("the lines of the prompt were joined")
    reading, unknown = prior.read_prompt(text), prior.unknown_words(text)
    notes += cut_note(prior.tokens_cut(reading.text))
    notes += word_notes(text, unknown, reading, used_word, takes_negative)
    notes += [*missing_words_note(text, prior.identifiers), *more]
    for note in notes:
        logger.warning("%s", note)
    return notes


def word_notes(
    prompt: str, unknown: Sequence[tuple[str, list[str]]], reading: Reading, used_word: str, takes_negative: bool
) -> list[str]:
    """Return warnings about words of a prompt that are unknown, replaced or left out, and about the received text.

    `unknown` are pairs (unknown word, similar known words), and `reading` is the prompt in words that the prior
    (diffusion model) knows. `used_word` and `takes_negative` are those of `prompt_warnings`.
    """
    notes = unknown_words_note([(word, near) for word, near in unknown if word != used_word])
    notes += [f"{used_word!r} sets the material of the asset"] if used_word else []
    return notes + reading_notes(reading, dict(unknown), takes_negative) + received_note(prompt, reading)


def missing_words_note(prompt: str, identifiers: Iterable[str]) -> list[str]:
    """Return a list with a warning that a prompt lacks words for tuned subjects, such as "[v]"; [] if it has them."""
    text = " ".join(prompt.split())
    missing = ", ".join(word for word in identifiers if remove_words(text, [word]) == text)
    return [f"the prompt does not contain {missing}: the result is not the tuned subject"] if missing else []


def cut_note(cut: str) -> list[str]:
    """Return a list with one warning that the end `cut` of a prompt exceeds the token limit; [] if `cut` is ""."""
    return [f"the prompt is too long for this prior: everything from {_quoted(cut)} on is ignored"] if cut else []


def unknown_words_note(unknown: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Return a list with one warning about the unknown words of a prompt; [] if there are none.

    `unknown` are pairs (unknown word, similar known words).
    """
    if not unknown:
        return []
    words = ", ".join(
        _quoted(word, 40) + (f" (nearest: {', '.join(near)})" if near else "") for word, near in unknown[:_MAX_LISTED]
    )
    more = f" and {len(unknown) - _MAX_LISTED} more" if len(unknown) > _MAX_LISTED else ""
    return [f"this prior does not know {words}{more}; {'it is' if len(unknown) == 1 else 'they are'} ignored"]


def reading_notes(reading: Reading, unknown: Collection[str], takes_negative: bool = True) -> list[str]:
    """Return warnings about known words of a prompt that are replaced or left out; [] without any.

    `reading` lists these words. It is the prompt, rewritten in words that the prior (diffusion model) knows. `unknown`
    are the words that it leaves out because they are unknown. `takes_negative` is whether the task has the option
    `negative_prompt`, which the warning about negations advises.
    """
    notes = []
    if reading.replaced:
        words = ", ".join(
            f"{_quoted(word, 40)} as {name!r}" for word, name in [*reading.replaced.items()][:_MAX_LISTED]
        )
        notes.append(f"this prior takes {words}")
    if left_out := [word for word in reading.ignored if word not in unknown][:_MAX_LISTED]:
        words = ", ".join(_quoted(word, 40) for word in left_out)
        notes.append(
            f"{words}: left out with the unknown words to which {'it belongs' if len(left_out) == 1 else 'they belong'}"
        )
    if reading.negated:
        words = _quoted(" ".join(reading.negated))
        advice = f" Use negative_prompt={words}." if takes_negative else ""
        notes.append(f"negations have no effect: {words} is left out.{advice}")
    return notes


def received_note(prompt: str, reading: Reading) -> list[str]:
    """Return a list with a note that shows the user the rewritten prompt, such as "the prior receives 'a dog'".

    The rewritten prompt is `reading.text`: `prompt` in words that the prior (diffusion model) knows. Returns [] if both
    have the same words, in any case.
    """
    same = re.findall(r"[^\W_]+", reading.text.lower()) == re.findall(r"[^\W_]+", prompt.lower())
    return [] if same else [f"the prior receives {_quoted(reading.text, 200)}"]


def _quoted(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else f"{text[: length - 3]}...")
