"""Prompts -> token numbers, and what to tell the user about words that are cut off or unknown.

Two kinds of tokenizer are met: CLIP's byte pairs, which can spell any word, and the word-level one of the
embedded toybox prior, whose vocabulary is closed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from threedgen.config import ConfigError

from .loading import RUNS_NOW, cached, hub_file, reachable
from .vocabulary import closed

if TYPE_CHECKING:
    from torch import Tensor

# Three public copies of the one vocabulary that all CLIP text encoders of Stable Diffusion share.
CLIP_SOURCES = (
    ("openai/clip-vit-large-patch14", ""),
    ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", ""),
    ("stabilityai/stable-diffusion-2-1-base", "tokenizer/"),
)
CLIP_FILES = ("vocab.json", "merges.txt")
OPEN_CLIP_PAD = "!"  # token 0: what OpenCLIP fills up with, where OpenAI's CLIP repeats the end token


def read_tokenizer(path: Path) -> Any:
    """The tokenizer in a folder (or in its sub-folder ``tokenizer``). ConfigError if there is none."""
    from transformers import AutoTokenizer, CLIPTokenizer

    path = path / "tokenizer" if (path / "tokenizer").is_dir() else path
    try:
        if (path / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        vocab, merges = (str(path / name) for name in CLIP_FILES)
        return CLIPTokenizer.from_pretrained(path, vocab=vocab, merges=merges, local_files_only=True)
    except Exception as error:  # the files come from outside: any kind
        raise ConfigError(f"{path} holds no readable tokenizer ({type(error).__name__})") from None


def clip_tokenizer(source: str | None, open_clip: bool) -> Any:
    """CLIP's tokenizer, which the original checkpoints lack: from ``source`` (folder, hub id) or the hub."""
    place = None if source is None else Path(source).expanduser()
    tokenizer = read_tokenizer(place if place is not None and place.is_dir() else hub_tokenizer(source))
    if open_clip:
        tokenizer.pad_token = OPEN_CLIP_PAD
    return tokenizer


def check_clip_tokenizer(source: str | None) -> None:
    """Raises ConfigError if ``clip_tokenizer`` plainly cannot succeed; fetches and reads nothing, without torch."""
    place = None if source is None else Path(source).expanduser()
    if place is None or not place.is_dir():
        hub_copies(source)
        return
    place = place / "tokenizer" if (place / "tokenizer").is_dir() else place
    if not (place / "tokenizer_config.json").is_file() and not all((place / name).is_file() for name in CLIP_FILES):
        raise ConfigError(f"{place} holds no tokenizer: neither tokenizer_config.json nor {CLIP_FILES[0]}", "tokenizer")


def hub_copies(repo: str | None) -> list[tuple[str, str]]:
    """Where on the hub (id, folder) a tokenizer is, cached ones if there are any. ConfigError if it cannot be had."""
    sources = CLIP_SOURCES if repo is None else ((repo, ""), (repo, "tokenizer/"))
    here = [(name, inside) for name, inside in sources if all(cached(name, inside + file) for file in CLIP_FILES)]
    if not here and not reachable():
        raise ConfigError(
            f"this checkpoint holds no tokenizer, and {repo or CLIP_SOURCES[0][0]} is not in the "
            "hub's cache nor can the hub be reached; copy CLIP's vocab.json and merges.txt into a folder and "
            f"set tokenizer: FOLDER; {RUNS_NOW}",
            "tokenizer",
        )
    return here or list(sources)


def hub_tokenizer(repo: str | None) -> Path:
    """Folder with the tokenizer of a hub id; by default the first public copy of CLIP's that is cached."""
    problem = ConfigError("")
    for name, inside in hub_copies(repo):
        try:
            return [hub_file(name, inside + file) for file in CLIP_FILES][0].parent
        except ConfigError as error:
            problem = error
    raise problem


def token_ids(tokenizer: Any, prompts: list[str], length: int) -> Tensor:
    """(n, length) token numbers, start and end included, filled up or cut to ``length``."""
    if tokenizer.pad_token_id is None:
        raise ConfigError("the tokenizer has no token to fill up short prompts with")
    options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    return tokenizer(prompts, **options).input_ids


def tokens_cut(tokenizer: Any, prompt: str, length: int) -> str:
    """The end of the prompt that does not fit into ``length`` tokens; "" if all of it fits."""
    room = length - tokenizer.num_special_tokens_to_add()
    options = {"add_special_tokens": False, "truncation": False, "verbose": False}
    offsets = tokenizer(prompt, return_offsets_mapping=True, **options)["offset_mapping"]
    return prompt[offsets[room][0] :].strip() if len(offsets) > room else ""


def unknown_words(tokenizer: Any, prompt: str) -> list[tuple[str, list[str]]]:
    """The words of ``prompt`` that a closed vocabulary lacks, each with up to three known words like it.

    Empty for tokenizers that can spell any word (CLIP's byte pairs).
    """
    vocabulary = closed(getattr(tokenizer, "backend_tokenizer", None))
    return [] if vocabulary is None else vocabulary.unknown(prompt)


def added_words(tokenizer: Any) -> list[str]:
    """Words that were added to the finished vocabulary, such as the identifier of a subject; no special tokens."""
    return [word for word in tokenizer.get_added_vocab() if word not in tokenizer.all_special_tokens]
