"""The word that was meant, among those that there are."""

from __future__ import annotations

import pytest

from threedgen.data.toybox.words import captions
from threedgen.run.similar_words import ALSO_CALLED, also_called, edits, similar

KNOWN = frozenset("a blue bus car cat chair dog grey hat house of red small tree truck turtle".split())


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("dog", "dog", 0), ("dgo", "dog", 1), ("carr", "car", 1), ("hose", "house", 1), ("cat", "dog", 3)],
)
def test_edits_are_counted(a: str, b: str, distance: int) -> None:
    assert edits(a, b) == distance == edits(b, a)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("corgi", "dog"),
        ("kitten", "cat"),
        ("automobile", "car"),
        ("foxes", "dog"),
        ("chairs", "chair"),
        ("tiny", "small"),
    ]
    + [("dgo", "dog"), ("tuttle", "turtle"), ("gray", "grey")],
)
def test_what_was_meant_comes_first(word: str, meant: str) -> None:
    assert similar(word, KNOWN)[0] == meant


@pytest.mark.parametrize("word", ["justice", "fluffy", "on", "zzgrblx", "hot-dog", "hot", "ca", "steam", "d" * 10_000])
def test_nothing_is_guessed_at_a_distance(word: str) -> None:
    assert similar(word, KNOWN) == []


def test_a_known_word_may_be_called_otherwise_too() -> None:
    assert also_called("stool", {*KNOWN, "stool"}) == ["stool", "chair"] and also_called("dog", KNOWN) == ["dog"]


def test_the_table_leads_to_words_of_the_toybox() -> None:
    known = {word for caption in captions() for word in caption.replace(",", " ").split()}
    assert set(ALSO_CALLED) <= known
    others = " ".join(ALSO_CALLED.values()).split()
    assert len(others) == len(set(others)), "one meaning each"
