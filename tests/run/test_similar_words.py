"""Similar words of a vocabulary."""

import pytest

from threedgen.data.toybox.words import captions
from threedgen.run.similar_words import LOOKALIKES, SYNONYMS, also_called, similar

KNOWN = frozenset("a blue bus car cat chair dog grey hat house of red small tree truck turtle".split())


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("corgi", "dog"), ("kitten", "cat"), ("automobile", "car"), ("foxes", "dog"), ("chairs", "chair"),
        ("tiny", "small"), ("dgo", "dog"), ("tuttle", "turtle"), ("gray", "grey"), ("carr", "car"), ("hose", "house"),
    ],
)  # fmt: skip
def test_similar_lists_the_expected_word_first(word: str, expected: str) -> None:
    assert similar(word, KNOWN)[0] == expected


@pytest.mark.parametrize("word", ["justice", "fluffy", "on", "zzgrblx", "hot-dog", "hot", "ca", "steam", "d" * 10_000])
def test_similar_is_empty_for_distant_words(word: str) -> None:
    assert similar(word, KNOWN) == []


def test_also_called_of_known_words() -> None:
    assert also_called("stool", {*KNOWN, "stool"}) == ["stool", "chair"] and also_called("dog", KNOWN) == ["dog"]


def test_synonyms_belong_to_one_toybox_word_each() -> None:
    known = {word for caption in captions() for word in caption.replace(",", " ").split()}
    assert {*SYNONYMS, *LOOKALIKES} <= known
    others = " ".join([*SYNONYMS.values(), *LOOKALIKES.values()]).split()
    assert len(others) == len(set(others))
