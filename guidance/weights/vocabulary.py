"""The words of a closed vocabulary, as the embedded prior has it, known before torch or any weights are loaded.

CLIP's byte pairs can spell any word, so of such a tokenizer there is nothing to ask.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from string import punctuation
from typing import Any

from threedgen.config import ConfigError
from threedgen.run.prompts import remove_words
from threedgen.run.similar_words import similar

FILE = Path("tokenizer", "tokenizer.json")
MOST_BYTES = 64 << 20


class Vocabulary:
    """Words that have a token each, all others being alike.

    known: the words.  added: those added to the finished vocabulary, such as the identifier of a subject.
    """

    def __init__(self, backend: Any, added: Iterable[str] = ()) -> None:
        """`backend`: a tokenizers.Tokenizer.  `added`: more words of this kind, not in it yet."""
        tokens = backend.get_added_tokens_decoder().values()
        self.backend = backend
        self.added = [*(token.content for token in tokens if not token.special), *added]
        self.known = frozenset(backend.get_vocab()) - {token.content for token in tokens if token.special}

    def split(self, prompt: str) -> list[str]:
        """The words of a prompt as the tokenizer takes them, each once, without punctuation and added ones."""
        prompt, splitter = remove_words(prompt, self.added), self.backend.pre_tokenizer
        text = prompt if self.backend.normalizer is None else self.backend.normalizer.normalize_str(prompt)
        words = text.split() if splitter is None else [word for word, _ in splitter.pre_tokenize_str(text)]
        return [word for word in dict.fromkeys(words) if word.strip(punctuation)]

    def unknown(self, prompt: str) -> list[tuple[str, list[str]]]:
        """The words of a prompt that it lacks, each with up to three known words that may have been meant."""
        return [(word, similar(word, self.known)) for word in self.split(prompt) if word not in self.known]


def closed(backend: Any, added: Iterable[str] = ()) -> Vocabulary | None:
    """The vocabulary of a tokenizers.Tokenizer; None of one that can spell any word, and of no such tokenizer."""
    is_closed = backend is not None and type(backend.model).__name__ == "WordLevel"
    return Vocabulary(backend, added) if is_closed else None


def read(folder: Path, added: Iterable[str] = ()) -> Vocabulary | None:
    """The closed vocabulary in a diffusers folder; None if there is another tokenizer or none. Raises ConfigError."""
    path = folder / FILE
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return None
    from tokenizers import Tokenizer

    try:
        return closed(Tokenizer.from_file(str(path)), added)
    except Exception as error:  # its reader raises Exception itself, for a file from outside
        raise ConfigError(f"{folder} holds no readable tokenizer ({type(error).__name__})", "weights") from None
