"""Typical heights of toybox nouns."""

from threedgen.data.toybox import nouns  # noqa: F401  (fills NOUNS)
from threedgen.data.toybox.grammar import NOUNS
from threedgen.data.toybox.heights import HEIGHTS, usual_height


def test_heights_cover_exactly_all_nouns() -> None:
    assert set(HEIGHTS) == set(NOUNS) and all(0.01 < metres < 50 for metres in HEIGHTS.values())
    assert HEIGHTS["mug"] < HEIGHTS["dog"] < HEIGHTS["person"] < HEIGHTS["house"] < HEIGHTS["lighthouse"]


def test_usual_height_uses_the_first_noun() -> None:
    assert usual_height("a blue dog wearing a red hat") == ("a dog", 0.5)
    assert usual_height("an Astronaut on a horse") == ("an astronaut", 1.9)
    assert usual_height("an ice cream") == ("an ice cream", 0.18) and usual_height("a spaceship") is None
