"""Checks of prompts for toybox priors, which know objects with at most one part or accessory. Imports no torch.

The checks apply only to priors whose closed vocabulary contains toybox nouns.
"""

import re
from collections.abc import Sequence

from threedgen.config import ConfigError
from threedgen.guidance.weights.tokens import Vocabulary
from threedgen.run.similar_words import also_called

from . import nouns  # noqa: F401  (fills NOUNS)
from .grammar import ACCESSORIES, COLOURS, NOUNS, Spec, caption, find_nouns

PAGE = "docs/toybox-words.md"
EXAMPLES_OF_ALL, EXAMPLES_OF_NEAREST = 2, 6
"""Number of nouns that an error lists per family if it lists all families, and if it lists only similar ones."""


def known_nouns(vocabulary: Vocabulary | None) -> list[str]:
    """Return the toybox nouns in a vocabulary. Priors that were not trained on the toybox have none."""
    return [noun for noun in NOUNS if vocabulary is not None and vocabulary.known.issuperset(noun.split())]


def check_noun(prompt: str, vocabulary: Vocabulary | None) -> None:
    """Raise ConfigError, with suggestions, if a prompt contains no noun that the toybox prior knows. Words that
    personalisation added count as nouns. Every prompt is accepted for priors without toybox nouns."""
    known = known_nouns(vocabulary)
    if vocabulary is None or not known or set(find_nouns(vocabulary.read(prompt).text)).intersection(known):
        return
    if any(word.lower() in prompt.lower() for word in vocabulary.added):
        return
    words = vocabulary.split(prompt)
    near = {word: also_called(word, vocabulary.known) for word in words} | dict(vocabulary.unknown(prompt))
    nearest = {word: [name for name in names if name in known][:1] for word, names in near.items()}
    swaps = ", ".join(f"{word!r} by {names[0]}" for word, names in nearest.items() if names)
    lead, limit = (
        (f"Replace {swaps}, or use another of", EXAMPLES_OF_NEAREST) if swaps else ("Use one of", EXAMPLES_OF_ALL)
    )
    families = dict.fromkeys(NOUNS[noun].family for noun in (sum(nearest.values(), []) or known))
    advice = f"{lead} {', '.join(_family(name, known, limit) for name in families)}"
    if not swaps:
        advice = _owner_advice(words, known) or advice
    raise ConfigError(
        f"contains no noun that this prior knows. {advice}. {PAGE} lists all words; prompt_check=off skips this check",
        "prompt",
        prompt,
    )


def _owner_advice(words: Sequence[str], known: Sequence[str]) -> str:
    """Return advice for a prompt that names a part or accessory without its object, or "" for other prompts."""
    colour = next((word for word in words if word in COLOURS), "red")
    for word in words:
        for noun in known:
            if word in NOUNS[noun].wears + NOUNS[noun].parts:
                example = caption(Spec(noun, part=word, part_colour=colour))
                return f'Name an object with the {word}, such as "{example}"'
    return ""


def _family(name: str, known: list[str], limit: int) -> str:
    members = [noun for noun in known if NOUNS[noun].family == name]
    return f"{name} ({', '.join(members[:limit])}{' ...' if len(members) > limit else ''})"


def notes(prompt: str, vocabulary: Vocabulary | None) -> list[str]:
    """Return warnings for a prompt that names several objects, parts or accessories. A toybox prior may
    mix the objects and omit parts."""
    prompt = prompt if vocabulary is None else vocabulary.read(prompt).text
    found = [noun for noun in find_nouns(prompt) if noun in known_nouns(vocabulary)]
    if not found:
        return []
    objects = [noun for k, noun in enumerate(found) if not (k and _is_compound(found[k - 1], noun, prompt))]
    words = re.findall(r"[a-z]+", prompt.lower())
    details = [word for word in dict.fromkeys(words) if word in (*ACCESSORIES, *NOUNS[objects[0]].parts)]
    warnings = []
    if len(objects) > 1:
        warnings.append(f"the prompt names {' and '.join(objects)}; this prior knows single objects and may mix them")
    if len(details) > 1:
        names = " and ".join(details)
        warnings.append(f"the prompt names {names}; this prior knows one part or accessory and may omit the others")
    return warnings


def _is_compound(first: str, second: str, prompt: str) -> bool:
    """Return whether two nouns in a row name one object, such as "palm tree"."""
    same_family = NOUNS[first].family == NOUNS[second].family
    return same_family and re.search(rf"\b{first} {second}\b", prompt.lower()) is not None
