"""Prompts in the words of a closed vocabulary."""

import json
from pathlib import Path

import pytest

from threedgen import folder
from threedgen.data.toybox.captions import OpenToybox
from threedgen.data.toybox.prompt_reading import read_prompt
from threedgen.run.prompts import Reading
from threedgen.run.similar_words import SYNONYM_OF


@pytest.fixture(scope="module")
def known() -> set[str]:
    tokenizer = Path(folder("weights")) / "toybox-prior" / "tokenizer" / "tokenizer.json"
    return set(json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"])


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a puppy", "a dog"),
        ("A photo of a cute puppy, wearing sunglasses", "a dog wearing glasses"),
        ("3D asset of a robot", "a robot"),
        ("a toy of a cute robot", "a toy of a robot"),
        ("an old wooden chair", "a chair"),
        ("a very old orange tree", "an orange tree"),
        ("a big elephant", "a large elephant"),
        ("a fire truck", "a truck"),
        ("a bear with a big sword", "a bear"),
        ("a pirate holding a sword and a flag", "a pirate with a flag"),
        ("a knight in shining armour with a blue plume", "a knight with a blue plume"),
        ("a dog that is small and cute", "a dog that is small"),
        ("a dog that is cute and small", "a dog that is small"),
        ("a red and white ball!", "a red and white ball!"),
        ("an image of a house on a hill", "a house"),
        ("a photo of [v] dog with a hat", "[v] dog with a hat"),
    ],
)
def test_read_prompt_uses_known_words_only(prompt: str, text: str, known: set[str]) -> None:
    assert read_prompt(prompt, known, ["[v]"]).text == text


def test_read_prompt_names_what_changed(known: set[str]) -> None:
    reading = read_prompt("a cute bunny with a cloak without a hat", known)
    assert reading == Reading("a rabbit with a cape", {"bunny": "rabbit", "cloak": "cape"}, ["cute"], ["hat"])


def test_read_prompt_keeps_training_captions(known: set[str]) -> None:
    world = OpenToybox(3)
    captions = [world.asset(index).caption for index in range(60)]
    assert [read_prompt(caption, known) for caption in captions] == [Reading(caption) for caption in captions]


def test_read_prompt_without_known_words_is_empty(known: set[str]) -> None:
    assert read_prompt("Ein Hund", known).text == ""


def test_synonyms_are_outside_the_vocabulary(known: set[str]) -> None:
    assert known.isdisjoint(SYNONYM_OF)
    assert known.issuperset(SYNONYM_OF.values())
