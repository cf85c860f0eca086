"""Check of a prompt while it is typed, and all words that the prior of a config knows."""

from typing import Any

from pydantic import BaseModel

from threedgen.guidance.weights.tokens import prompt_reader
from threedgen.systems.prompted import PromptedConfig


class Word(BaseModel):
    """Word of a prompt, whether the vocabulary contains it (`known`), and similar words in the vocabulary (`near`)."""

    word: str
    known: bool
    near: list[str]


class Words(BaseModel):
    """Check of a prompt. All fields are empty for a prior that takes any text.

    Attributes:
        words: all words of the prompt.
        notes: warnings for the user.
        nouns: suggested nouns.
        typed: the unfinished last word, which a suggested noun replaces, or "".
    """

    words: list[Word] = []
    notes: list[str] = []
    nouns: list[str] = []
    typed: str = ""


def vocabulary_of(config: Any) -> dict[str, list[str]]:
    """Return the vocabulary of a run config's prior as category -> words; {} if it takes any text. ConfigError."""
    vocabulary = config.vocabulary() if isinstance(config, PromptedConfig) else None
    return {} if vocabulary is None else prompt_reader(vocabulary).categories()


def check_prompt(prompt: str, config: Any) -> Words:
    """Check a prompt for the prior of a run config. Raises ConfigError if the vocabulary is damaged."""
    vocabulary = config.vocabulary() if isinstance(config, PromptedConfig) else None
    if vocabulary is None:
        return Words()
    unknown = dict(vocabulary.unknown(prompt))
    words = [Word(word=w, known=w not in unknown, near=unknown.get(w, [])) for w in vocabulary.split(prompt)]
    typed, nouns = prompt_reader(vocabulary).suggest(prompt)
    notes = config.model_copy(update={"prompt": prompt}).prompt_notes()
    return Words(words=words, notes=notes, nouns=nouns, typed=typed)
