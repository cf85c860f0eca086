"""Check a prompt while the user types: which words the prior's vocabulary contains, and which nouns it suggests."""

from typing import Any

from threedgen.guidance.weights.tokens import prompt_reader
from threedgen.run.disk import Tree
from threedgen.systems.prompted import PromptedConfig


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
    typed, nouns = prompt_reader(vocabulary).suggest(prompt)
    notes = config.model_copy(update={"prompt": prompt}).prompt_notes()
    return {"words": words, "notes": notes, "nouns": nouns, "typed": typed}
