"""A prompt is held against what the embedded prior can draw, before torch or a weight is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_prior import letter_tokenizer, word_tokenizer
from threedgen import cli
from threedgen.config import ConfigError, load
from threedgen.data.toybox.prompt_words import check_noun, notes
from threedgen.guidance.weights.vocabulary import Vocabulary, closed


@pytest.fixture(scope="module")
def embedded() -> Vocabulary:
    found = load("mvdream-toybox").vocabulary()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a blue corgi", ["for 'corgi' say dog, or another of animals (dog, cat, bear,"]),
        ("a spaceship, a lorry", ["for 'spaceship' say rocket, for 'lorry' say truck", "vehicles (car, truck,"]),
        ("two dogs", ["for 'dogs' say dog"]),
        ("justice", ["it knows animals (dog, cat ...), buildings (house, castle ...), vehicles"]),
        ("a photo of a cup", ["for 'cup' say mug, or another of household (mug, teapot,"]),
        ("red apples", ["for 'apples' say apple"]),
        ("a blue hat", ['say who wears the hat, such as "a dog wearing a blue hat"; docs/']),
        ("a roof", ['say what has the roof, such as "a house with a red roof"; docs/']),
        ("glasses on a nebula", ['say who wears the glasses, such as "a dog wearing red glasses"; docs/']),
    ],
)
def test_a_prompt_without_a_known_thing_is_refused(prompt: str, said: list[str], embedded: Vocabulary) -> None:
    with pytest.raises(ConfigError) as caught:
        check_noun(prompt, embedded)
    text = str(caught.value)
    assert text.startswith("prompt: names nothing that this prior can draw") and "\n" not in text
    assert all(part in text for part in [*said, "docs/toybox.md", "prompt_check=off", f"(got {prompt!r})"])


@pytest.mark.parametrize("prompt", ["a dog", "Ice Cream!", "a fluffy unicorn beside a tree"])
def test_one_known_thing_is_enough(prompt: str, embedded: Vocabulary) -> None:
    check_noun(prompt, embedded)


def test_other_vocabularies_are_not_held_against_the_toybox(embedded: Vocabulary) -> None:
    check_noun("justice", None)
    check_noun("justice", closed(word_tokenizer(["justice", "red"]).backend_tokenizer))
    check_noun("a [V] thing", Vocabulary(embedded.backend, ["[v]"]))
    assert closed(letter_tokenizer().backend_tokenizer) is None and closed(None) is None
    assert notes("a dog and a cat", None) == []


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a white dog on a red chair", ["names dog and chair"]),
        ("a dog wearing a hat and a red scarf", ["asks for hat and scarf"]),
        ("a dog with blue ears wearing a hat, and a cat", ["names dog and cat", "asks for ears and hat"]),
        ("a palm tree", []),
        ("a blue dog wearing a red hat", []),
        ("a unicorn", []),
    ],
)
def test_more_than_it_learnt_is_said(prompt: str, said: list[str], embedded: Vocabulary) -> None:
    found = notes(prompt, embedded)
    assert len(found) == len(said) and all(part in note for part, note in zip(said, found, strict=True))


@pytest.mark.parametrize("name", ["mvdream-toybox", "sds-toybox", "sample-toybox"])
def test_nothing_is_begun_with_it(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", name, "prompt=a corgi", f"out={tmp_path / 'run'}"]) == 2
    assert "say dog" in capsys.readouterr().err and not list(tmp_path.iterdir())
    load(name, ["prompt=a corgi", "prompt_check=off"]).check()


def test_the_answer_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from threedgen import cli; code = cli.main(['prompt=a corgi', 'out=run']);"
        "sys.exit(code if 'torch' not in sys.modules else 'torch was loaded')"
    )
    words: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", code], **words)
    assert done.returncode == 2, done.stderr
