"""What is said of a prompt while it is typed: the words that the prior knows, and things that it can draw."""

from __future__ import annotations

from itertools import islice
from typing import Any

from threedgen.data.toybox.grammar import NOUNS, named
from threedgen.data.toybox.prompt_words import known_nouns
from threedgen.guidance.weights.vocabulary import Vocabulary
from threedgen.systems.prompted import PromptedConfig

MOST = 10
"""Nouns that are suggested at once."""


def look(prompt: str, config: Any) -> dict[str, Any]:
    """The words of a prompt, notes on it, and nouns to go on with; nothing of a prior that reads any words.

    words: each with whether it is known, and up to three known ones that may have been meant; typed: the beginning of
    a word in place of which the nouns are suggested, or "". Raises ConfigError for a vocabulary that cannot be read.
    """
    vocabulary = config.vocabulary() if isinstance(config, PromptedConfig) else None
    if vocabulary is None:
        return {"words": [], "notes": [], "nouns": [], "typed": ""}
    unknown = dict(vocabulary.unknown(prompt))
    words = [{"word": w, "known": w not in unknown, "near": unknown.get(w, [])} for w in vocabulary.split(prompt)]
    typed, nouns = suggested(prompt, vocabulary)
    notes = config.model_copy(update={"prompt": prompt}).prompt_notes()
    return {"words": words, "notes": notes, "nouns": nouns, "typed": typed}


def suggested(prompt: str, vocabulary: Vocabulary) -> tuple[str, list[str]]:
    """The beginning of a word, and the nouns that begin like it; else "", and a noun of each family, if none is named.

    Whoever has typed a noun needs no other.
    """
    nouns, last = known_nouns(vocabulary), prompt.lower().rpartition(" ")[2]
    if last in vocabulary.known or not last.isalpha():
        last = ""
    if last and (found := [noun for noun in nouns if noun.startswith(last)]):
        return last, found[:MOST]
    if set(named(prompt)).intersection(nouns):
        return "", []
    families = {NOUNS[noun].family: noun for noun in reversed(nouns)}
    return "", list(islice(reversed(families.values()), MOST))
