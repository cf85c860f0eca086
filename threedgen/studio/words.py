"""Check a prompt while the user types: which words the prior's vocabulary contains, and which nouns it suggests."""

from itertools import islice
from typing import Any

from threedgen.data.toybox.grammar import NOUNS, find_nouns
from threedgen.data.toybox.prompt_words import known_nouns
from threedgen.guidance.weights.tokens import Vocabulary
from threedgen.run.disk import Tree
from threedgen.systems.prompted import PromptedConfig

MAX_NOUNS = 10


def check_prompt(prompt: str, config: Any) -> Tree:
    """Check a prompt against the vocabulary of a run config's prior. Raises ConfigError for a damaged vocabulary.

    Returns a dict, with empty values for a prior without a vocabulary:
        words: a dict per word: `word`, `known` (whether the vocabulary contains it), `near` (similar known words).
        notes: warnings for the user.
        nouns: suggested nouns.
        typed: the unfinished last word, which a suggested noun replaces, or "".
    """
    vocabulary = config.vocabulary() if isinstance(config, PromptedConfig) else None
    if vocabulary is None:
        return {"words": [], "notes": [], "nouns": [], "typed": ""}
    unknown = dict(vocabulary.unknown(prompt))
    words = [{"word": w, "known": w not in unknown, "near": unknown.get(w, [])} for w in vocabulary.split(prompt)]
    typed, nouns = suggest_nouns(prompt, vocabulary)
    notes = config.model_copy(update={"prompt": prompt}).prompt_notes()
    return {"words": words, "notes": notes, "nouns": nouns, "typed": typed}


def suggest_nouns(prompt: str, vocabulary: Vocabulary) -> tuple[str, list[str]]:
    """Suggest nouns of the vocabulary for a prompt.

    If known nouns start with the unfinished last word, returns that word and those nouns. Otherwise returns "", and one
    noun of each family, or no nouns if the prompt already contains one.
    """
    nouns, last = known_nouns(vocabulary), prompt.lower().rpartition(" ")[2]
    if last in vocabulary.known or not last.isalpha():
        last = ""
    if last and (found := [noun for noun in nouns if noun.startswith(last)]):
        return last, found[:MAX_NOUNS]
    if set(find_nouns(prompt)).intersection(nouns):
        return "", []
    families = {NOUNS[noun].family: noun for noun in reversed(nouns)}
    return "", list(islice(reversed(families.values()), MAX_NOUNS))
