"""What is said about words that a prior does not see or know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_prior import letter_tokenizer, word_tokenizer
from threedgen.config import ConfigError
from threedgen.guidance.weights import tokens


def test_words_cut_off_by_byte_pairs() -> None:
    assert tokens.tokens_cut(letter_tokenizer(), "abcdefghij klm", 16) == ""
    assert tokens.tokens_cut(letter_tokenizer(), "abcdefghij klmnop Qr", 16) == "op Qr"


def test_unknown_words_come_with_the_nearest_known_ones() -> None:
    found = tokens.unknown_words(word_tokenizer(), "A rde dog, a horse and a Carr. rde")
    assert [word for word, _ in found] == ["rde", "horse", "carr"]
    nearest = dict(found)
    assert nearest["carr"][0] == "car" and "red" in nearest["rde"] and nearest["horse"] == ["house"]
    assert all(not word.startswith("<") for words in nearest.values() for word in words)
    assert tokens.unknown_words(word_tokenizer(), "a red dog") == []
    assert tokens.unknown_words(letter_tokenizer(), "xyzzy") == []


def clip_files(path: Path) -> Path:
    """The two files that CLIP's tokenizer was published as."""
    path.mkdir(parents=True)
    (path / "vocab.json").write_text(json.dumps(letter_tokenizer().get_vocab()))
    (path / "merges.txt").write_text("#version: 0.2\n")
    return path


@pytest.mark.parametrize("inside", ["", "tokenizer"])
def test_clips_two_files_are_enough(tmp_path: Path, inside: str) -> None:
    clip_files(tmp_path / "x" / inside)
    found = tokens.clip_tokenizer(str(tmp_path / "x"), open_clip=False)
    expected = tokens.token_ids(letter_tokenizer(), ["a dog, a cat"], 16)
    assert tokens.token_ids(found, ["a dog, a cat"], 16).tolist() == expected.tolist()


def test_open_clip_fills_up_with_token_0(tmp_path: Path) -> None:
    path = str(clip_files(tmp_path / "x"))
    assert tokens.token_ids(tokens.clip_tokenizer(path, open_clip=True), ["a"], 5)[0, 3:].tolist() == [0, 0]
    end = letter_tokenizer().eos_token_id
    assert tokens.token_ids(tokens.clip_tokenizer(path, open_clip=False), ["a"], 5)[0, 2:].tolist() == [end] * 3


def test_the_tokenizer_is_found_in_the_hub_cache(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo = tmp_path / "models--laion--CLIP-ViT-H-14-laion2B-s32B-b79K"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    clip_files(repo / "snapshots" / "abc")
    assert len(tokens.clip_tokenizer(None, open_clip=True)) == len(letter_tokenizer())
    with pytest.raises(ConfigError, match="someone/clip is not in the hub's cache"):
        tokens.clip_tokenizer("someone/clip", open_clip=True)


def test_code_beside_a_tokenizer_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'trap')!r}, 'w')\nclass T: pass\n")
    config = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no readable tokenizer"):
        tokens.read_tokenizer(tmp_path)
    assert not (tmp_path / "trap").exists()


def test_a_tokenizer_without_filling_is_named() -> None:
    bare = word_tokenizer()
    bare.pad_token = None
    with pytest.raises(ConfigError, match="no token to fill up"):
        tokens.token_ids(bare, ["a"], 5)
