"""What the toybox can make of a prompt: one thing, with one part or accessory of its own colour.

Asked of priors whose closed vocabulary has nouns of the toybox; all others read any words. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from threedgen.config import ConfigError
from threedgen.guidance.weights.vocabulary import Vocabulary
from threedgen.run.similar_words import also_called

from . import nouns  # noqa: F401  (fills NOUNS)
from .grammar import ACCESSORIES, COLOURS, NOUNS, Spec, caption, named

PAGE = "docs/toybox.md"
OF_MANY, OF_FEW = 2, 6
"""Nouns of a family that are shown where all families are, and where only the nearest."""


def known_nouns(vocabulary: Vocabulary | None) -> list[str]:
    """The nouns of the toybox all of whose words are known; none of a prior that did not learn from it."""
    return [noun for noun in NOUNS if vocabulary is not None and vocabulary.known.issuperset(noun.split())]


def check_noun(prompt: str, vocabulary: Vocabulary | None) -> None:
    """Raises ConfigError if the prompt names nothing that a prior of the toybox knows, with what may have been meant:
    the nearest families, or a thing with the part that it names.

    The word of a subject that the prior was tuned to is such a name too.
    """
    known = known_nouns(vocabulary)
    if vocabulary is None or not known or set(named(prompt)).intersection(known):
        return
    if any(word.lower() in prompt.lower() for word in vocabulary.added):
        return
    words = vocabulary.split(prompt)
    near = {word: also_called(word, vocabulary.known) for word in words} | dict(vocabulary.unknown(prompt))
    meant = {word: [name for name in names if name in known][:1] for word, names in near.items()}
    instead = "".join(f"for {word!r} say {names[0]}, " for word, names in meant.items() if names)
    lead, shown = (f"{instead}or another of", OF_FEW) if instead else ("it knows", OF_MANY)
    families = dict.fromkeys(NOUNS[noun].family for noun in (sum(meant.values(), []) or known))
    told = f"{lead} {', '.join(_family(name, known, shown) for name in families)}"
    raise ConfigError(
        f"names nothing that this prior can draw; {told if instead else _of_something(words, known) or told}; "
        f"{PAGE} lists all words, and prompt_check=off goes on all the same",
        "prompt",
        prompt,
    )


def _of_something(words: Sequence[str], known: Sequence[str]) -> str:
    """How the accessory or part among the words is asked for, which is nothing by itself; "" if there is none."""
    colour = next((word for word in words if word in COLOURS), "red")
    for word in words:
        for noun in known:
            if word in NOUNS[noun].wears + NOUNS[noun].parts:
                lead = "say who wears" if word in NOUNS[noun].wears else "say what has"
                return f'{lead} the {word}, such as "{caption(Spec(noun, part=word, part_colour=colour))}"'
    return ""


def _family(name: str, known: list[str], shown: int) -> str:
    members = [noun for noun in known if NOUNS[noun].family == name]
    return f"{name} ({', '.join(members[:shown])}{' ...' if len(members) > shown else ''})"


def notes(prompt: str, vocabulary: Vocabulary | None) -> list[str]:
    """A sentence for each way in which a prompt asks for more than a prior of the toybox learnt to draw at once."""
    found = [noun for noun in named(prompt) if noun in known_nouns(vocabulary)]
    if not found:
        return []
    things = [noun for k, noun in enumerate(found) if not (k and _one_name(found[k - 1], noun, prompt))]
    words = re.findall(r"[a-z]+", prompt.lower())
    details = [word for word in dict.fromkeys(words) if word in (*ACCESSORIES, *NOUNS[things[0]].parts)]
    told = []
    if len(things) > 1:
        told.append(f"the prompt names {' and '.join(things)}; this prior learnt one thing at a time, and may mix them")
    if len(details) > 1:
        several = f"the prompt asks for {' and '.join(details)}; this prior learnt one part or accessory at a time"
        told.append(f"{several}, and may leave one out")
    return told


def _one_name(first: str, second: str, prompt: str) -> bool:
    """Is it the name of one thing, such as "palm tree"?"""
    alike = NOUNS[first].family == NOUNS[second].family
    return alike and re.search(rf"\b{first} {second}\b", prompt.lower()) is not None
