"""Tokenizers: token numbers of prompts, the token limit, and closed vocabularies; imports no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Iterable
from itertools import count, takewhile
from pathlib import Path
from string import punctuation
from typing import TYPE_CHECKING, Protocol

from threedgen.config import ConfigError, registry
from threedgen.config.errors import short
from threedgen.config.plain_file import require_regular_file
from threedgen.run.prompts import Reading, received_note, remove_words

from .hub import CLIP_FILES, CLIP_REPOSITORY, clip_files
from .loading import tokenizer_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

OPEN_CLIP_PAD = "!"  # padding token of OpenCLIP, with number 0; OpenAI's CLIP pads with the end token instead
VOCABULARY_FILE = Path("tokenizer", "tokenizer.json")
MAX_VOCABULARY_BYTES = 64 << 20
KNOWN_IDENTIFIER = "is in the vocabulary; choose one that is no word, such as [v]"
"""Error message for an identifier, the word for a DreamBooth subject, that the tokenizer already has as a token."""


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in the folder `path` or its sub-folder "tokenizer". Raises ConfigError if it is unreadable."""
    from transformers import AutoTokenizer, CLIPTokenizer

    path = tokenizer_folder(path)
    try:
        for file in path.iterdir():
            if file.suffix in (".json", ".txt", ".model"):
                require_regular_file(file, MAX_VOCABULARY_BYTES)
        if (path / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        vocab, merges = (str(path / name) for name in CLIP_FILES)
        return CLIPTokenizer.from_pretrained(path, vocab=vocab, merges=merges, local_files_only=True)
    except Exception as error:  # any kind, for files from outside
        reason = type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = f"{Path(error.filename or path).name}: {error.strerror}"
        raise ConfigError(f"{path} holds no readable tokenizer ({reason})") from None


def clip_tokenizer(source: str | None, open_clip: bool) -> PreTrainedTokenizerBase:
    """Load CLIP's tokenizer from a folder or hub id; None: from the default repository on the hub.

    `open_clip` is whether to pad prompts as OpenCLIP does, with token 0, or as CLIP does, with the end token. Another
    tokenizer than CLIP's keeps its padding token.
    """
    path = None if source is None else Path(source).expanduser()
    tokenizer = read_tokenizer(path if path is not None and path.is_dir() else clip_files(source or CLIP_REPOSITORY))
    padding = tokenizer.eos_token, OPEN_CLIP_PAD
    if tokenizer.pad_token in (None, *padding):
        tokenizer.pad_token = padding[open_clip]
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int) -> Tensor:
    """Return token numbers (n, length) int64 of n prompts with start and end token, padded or cut to `length`.

    Raises ConfigError if the tokenizer has no padding token.
    """
    if tokenizer.pad_token_id is None:
        raise ConfigError("the tokenizer has no token to fill up short prompts with")
    prompts = [with_all_vectors(tokenizer, prompt) for prompt in prompts]
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def tokens_cut(tokenizer: PreTrainedTokenizerBase, prompt: str, length: int) -> str:
    """Return the end of the prompt that exceeds `length` tokens (start and end token included); "" if all fits."""
    prompt, free = with_all_vectors(tokenizer, prompt), length - tokenizer.num_special_tokens_to_add()
    encoded = tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False, truncation=False, verbose=False)
    offsets = encoded["offset_mapping"]
    return prompt[offsets[free][0] :].strip() if len(offsets) > free else ""


def with_all_vectors(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Return a prompt in which the word of each textual inversion is followed by the inversion's other tokens.

    A textual inversion with n vectors has n tokens: WORD, WORD_1, ..., WORD_n-1. The user's prompt has only WORD. Where
    several words match, the longest is meant.
    """
    added = tokenizer.get_added_vocab()
    tokens = {word.lower(): vector_tokens(added, word)[1:] for word in added}
    words = "|".join(re.escape(word) for word in sorted(added, key=len, reverse=True))
    return re.sub(
        rf"(?<!\w)({words})(?!\w)",
        lambda match: " ".join([match[0], *tokens.get(match[0].lower(), [])]),
        prompt,
        flags=re.IGNORECASE,
    )


def vector_tokens(added: Container[str], word: str) -> list[str]:
    """Return the tokens of the textual inversion `word`: WORD, WORD_1, WORD_2, ... as far as they are in `added`."""
    return [word, *takewhile(added.__contains__, (f"{word}_{n}" for n in count(1)))]


def added_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the words that were added to a tokenizer after its training, by DreamBooth or textual inversion."""
    return [word for word in tokenizer.get_added_vocab() if word not in tokenizer.all_special_tokens]


class Vocabulary:
    """Closed vocabulary of a word-level tokenizer, in which each known word has one token.

    Attributes:
        known: all words of the tokenizer except special tokens; includes words that were added after its training.
        added: words for new objects, such as "[v]", from DreamBooth or textual inversion: first those added to the
            tokenizer after its training, then those of the constructor's argument `added`, which need not be in the
            tokenizer.
    """

    def __init__(self, backend: Tokenizer, added: Iterable[str] = ()) -> None:
        tokens = backend.get_added_tokens_decoder().values()
        self.backend = backend
        self.added = [*(token.content for token in tokens if not token.special), *added]
        self.known = frozenset(backend.get_vocab()) - {token.content for token in tokens if token.special}

    def split(self, prompt: str) -> list[str]:
        """Return the distinct words of a prompt, in order, without punctuation.

        Words for new objects, such as "[v]" from DreamBooth (attribute `added`), are left out.
        """
        prompt, splitter = remove_words(prompt, self.added), self.backend.pre_tokenizer
        text = prompt if self.backend.normalizer is None else self.backend.normalizer.normalize_str(prompt)
        words = text.split() if splitter is None else [word for word, _ in splitter.pre_tokenize_str(text)]
        return [word for word in dict.fromkeys(words) if word.strip(punctuation)]

    def unknown(self, prompt: str) -> list[tuple[str, list[str]]]:
        """Return the unknown words of a prompt that lack a known synonym, each with up to three similar known words."""
        reader = prompt_reader(self)
        left_out = reader.read(prompt).ignored  # some are known, and belong to an unknown word
        return [(word, reader.similar(word)) for word in left_out if reader.read(word).ignored]

    def read(self, prompt: str) -> Reading:
        """Rewrite a prompt in known words: replace unknown words by known synonyms, or else remove them.

        Words that belong to removed words, such as their colours, are removed too. The result has the new text, the
        replaced words with their synonyms, and the words that were left out.
        """
        return prompt_reader(self).read(prompt)


class PromptReader(Protocol):
    """Interface of an object that rewrites and checks prompts for a prior that knows only a fixed set of words.

    `prompt_reader` returns such an object. Its methods: `read` rewrites a prompt in known words, `similar` finds known
    words like a given one, `check` raises an error for a prompt without known object, `notes` returns warnings,
    `suggest` completes a prompt, `categories` lists the known words, `usual_height` returns the height of an object.
    """

    def read(self, prompt: str) -> Reading:
        """Rewrite a prompt in known words: replace unknown words by known synonyms, or else remove them.

        Words that belong to removed words, such as their colours, are removed too. The result has the new text, the
        replaced words with their synonyms, and the words that were left out.
        """

    def similar(self, word: str) -> list[str]:
        """Return up to three known words similar to a word, most similar first."""

    def check(self, prompt: str, of_object: bool = True) -> None:
        """Raise ConfigError, with suggestions in the message, if the prompt names no object that the prior knows.

        Words that DreamBooth or textual inversion added count as objects. With `of_object` False the prompt describes a
        scene, and one known noun is enough, such as "room".
        """

    def notes(self, prompt: str) -> list[str]:
        """Return warnings if a prompt names several objects or parts, or an object or parts that will be missing."""

    def suggest(self, prompt: str) -> tuple[str, list[str]]:
        """Suggest object classes for an unfinished prompt. Return (word to complete or "", classes).

        The first matching case applies:
        - The prompt names a known object class, or a synonym: "" and [].
        - The last word is unknown, but known object classes start with it: the word and these classes.
        - All other prompts: "" and examples of known object classes.
        """

    def categories(self) -> dict[str, list[str]]:
        """Return a dict from category to the known words in it.

        First come groups of object classes ("animals", "vehicles", ...), then "colours", "sizes" and "accessories".
        """

    def usual_height(self, prompt: str) -> tuple[str, float] | None:
        """Return the first object that a prompt names and its usual height in metres, ("a dog", 0.5), or None."""


def prompt_reader(vocabulary: Vocabulary | None) -> PromptReader:
    """Return an object that rewrites and checks the prompts of a prior in the words that the prior knows.

    It also tells the usual heights of objects, in metres. Its object classes are those of the toybox, the procedural
    world of the training images. `vocabulary` is the closed vocabulary of the prior. None: the prior takes any text, so
    prompts are neither changed nor checked.
    """
    return registry.implementation("prompt-reader", "toybox")(vocabulary)


def caption_notes(captions: Collection[str], vocabulary: Vocabulary | None) -> list[str]:
    """Return warnings about captions of assets that a prior (diffusion model) does not read as they are written.

    `vocabulary` is the closed vocabulary of the prior; None: the prior takes any text, and there are no warnings.
    """
    if vocabulary is None:
        return []
    reader, unknown, changed = prompt_reader(vocabulary), list[str](), list[str]()
    for caption in captions:
        reading = reader.read(caption)
        example = f"{short(caption)} as {short(reading.text)}"
        try:
            reader.check(caption)
        except ConfigError:
            unknown.append(example)
        else:
            changed += [example] if received_note(caption, reading) else []
    problems = {"name no object that this prior knows": unknown, "have words that this prior does not know": changed}
    return [
        f"{len(found)} of {len(captions)} captions {problem}: it reads {', '.join(found[:3])}. "
        "Use words that it knows, or a prior that takes any text"
        for problem, found in problems.items()
        if found
    ]


def closed_vocabulary(backend: Tokenizer | None, added: Iterable[str] = ()) -> Vocabulary | None:
    """Return the vocabulary of a tokenizer with one token per word; None for any other tokenizer.

    `added` are further words that prompts may contain, such as the new word "[v]" for a subject of DreamBooth.
    """
    if backend is None or type(backend.model).__name__ != "WordLevel":
        return None
    return Vocabulary(backend, added)


def read_vocabulary(folder: Path, added: Iterable[str] = ()) -> Vocabulary | None:
    """Read the closed vocabulary of a diffusers folder; None if it has no tokenizer with one token per word.

    `added` are further words that prompts may contain, such as the new word "[v]" for a subject of DreamBooth. Raises
    ConfigError if the tokenizer's file is damaged.
    """
    path = folder / VOCABULARY_FILE
    if not path.is_file() or path.stat().st_size > MAX_VOCABULARY_BYTES:
        return None
    from tokenizers import Tokenizer

    try:
        return closed_vocabulary(Tokenizer.from_file(str(path)), added)
    except Exception as error:  # Tokenizer.from_file raises plain Exception
        raise ConfigError(f"{folder} holds no readable tokenizer ({type(error).__name__})", "weights") from None
