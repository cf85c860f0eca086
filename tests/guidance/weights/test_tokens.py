"""Tokenizers: words cut off, unknown words, CLIP's files, refusals."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.errors import refused
from tests.support.tiny_prior import letter_tokenizer, word_tokenizer
from threedgen.guidance.weights import files, tokens


def test_tokens_cut_returns_words_beyond_limit() -> None:
    assert tokens.tokens_cut(letter_tokenizer(), "abcdefghij klm", 16) == ""
    assert tokens.tokens_cut(letter_tokenizer(), "abcdefghij klmnop Qr", 16) == "op Qr"


def test_unknown_words_returns_similar_known_words() -> None:
    assert tokens.unknown_words(word_tokenizer(), "A rde dog, a xyzzy. rde") == [("rde", ["red"]), ("xyzzy", [])]
    assert tokens.unknown_words(word_tokenizer(), "a red dog") == []
    assert tokens.unknown_words(letter_tokenizer(), "xyzzy") == []


def clip_files(path: Path) -> Path:
    """Write the two files that CLIP's tokenizer was published as."""
    path.mkdir(parents=True)
    (path / "vocab.json").write_text(json.dumps(letter_tokenizer().get_vocab()))
    (path / "merges.txt").write_text("#version: 0.2\n")
    return path


@pytest.mark.parametrize("inside", ["", "tokenizer"])
def test_clip_tokenizer_reads_vocab_and_merges(tmp_path: Path, inside: str) -> None:
    """OpenCLIP pads with token 0, CLIP with the end token."""
    clip_files(tmp_path / "x" / inside)
    clip, open_clip = (tokens.clip_tokenizer(str(tmp_path / "x"), open_clip=kind) for kind in (False, True))
    prompts = ["a dog, a cat"]
    assert torch.equal(tokens.token_ids(clip, prompts, 16), tokens.token_ids(letter_tokenizer(), prompts, 16))
    assert tokens.token_ids(open_clip, ["a"], 5)[0, 3:].tolist() == [0, 0]
    assert tokens.token_ids(clip, ["a"], 5)[0, 2:].tolist() == [letter_tokenizer().eos_token_id] * 3


def test_clip_tokenizer_is_found_in_hub_cache(no_hub: Path) -> None:
    repo = no_hub / "models--openai--clip-vit-large-patch14"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    clip_files(repo / "snapshots" / "abc")
    assert len(tokens.clip_tokenizer(None, open_clip=True)) == len(letter_tokenizer())
    with refused("tokenizer", "someone/clip"):
        tokens.clip_tokenizer("someone/clip", open_clip=True)


def test_read_tokenizer_refuses_code_and_does_not_run_it(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'trap')!r}, 'w')\nclass T: pass\n")
    config = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with refused(None, tmp_path):
        tokens.read_tokenizer(tmp_path)
    assert not (tmp_path / "trap").exists()


def test_token_ids_refuses_tokenizer_without_padding() -> None:
    bare = word_tokenizer()
    bare.pad_token = None
    with refused():
        tokens.token_ids(bare, ["a"], 5)


def test_tokenizers_and_headers_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip_files(tmp_path / "x")
    assert len(tokens.read_tokenizer(path)) == len(letter_tokenizer())
    monkeypatch.setattr("threedgen.guidance.weights.tokens.MAX_VOCABULARY_BYTES", 10)
    with refused(None, path):
        tokens.read_tokenizer(path)
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"note": 1000 * "x"})
    assert files.read_header(tmp_path / "a.safetensors")[0] == ["a"]
    monkeypatch.setattr("threedgen.guidance.weights.files.MAX_HEADER", 1000)
    with refused(None, tmp_path / "a.safetensors"):
        files.read_header(tmp_path / "a.safetensors")
