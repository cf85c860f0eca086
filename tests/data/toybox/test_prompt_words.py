"""Prompt check of toybox priors, before torch or weights are loaded."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.errors import refused
from tests.support.tiny_prior import letter_tokenizer, word_tokenizer
from threedgen import cli
from threedgen.config import load
from threedgen.data.toybox.prompt_words import check_noun, notes
from threedgen.guidance.weights.tokens import Vocabulary, closed_vocabulary


@pytest.fixture(scope="module")
def embedded() -> Vocabulary:
    found = load("mvdream-toybox").vocabulary()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("prompt", "values"),
    [
        ("a blue corgi", ["'corgi' by dog", "animals (dog, cat, bear,"]),
        ("a ferry, a pickup", ["'ferry' by boat", "'pickup' by truck", "vehicles (car, truck,"]),
        ("justice", ["animals (dog, cat ...), buildings (house, castle ...), vehicles"]),
        ("a photo of a cup", ["'cup' by mug", "household (mug, teapot,"]),
        ("red apples", ["'apples' by apple"]),
        ("a blue hat", ['"a dog wearing a blue hat"']),
        ("a roof", ['"a house with a red roof"']),
        ("glasses on a nebula", ['"a dog wearing red glasses"']),
    ],
)
def test_check_noun_refuses_prompts_without_known_noun(prompt: str, values: list[str], embedded: Vocabulary) -> None:
    with refused("prompt", *values, "docs/toybox-words.md", "prompt_check=off", repr(prompt)):
        check_noun(prompt, embedded)


@pytest.mark.parametrize("prompt", ["a dog", "Ice Cream!", "a fluffy unicorn beside a tree", "a puppy", "two dogs"])
def test_check_noun_accepts_one_known_noun(prompt: str, embedded: Vocabulary) -> None:
    check_noun(prompt, embedded)


def test_check_noun_ignores_other_vocabularies(embedded: Vocabulary) -> None:
    check_noun("justice", None)
    check_noun("justice", closed_vocabulary(word_tokenizer(["justice", "red"]).backend_tokenizer))
    check_noun("a [V] thing", Vocabulary(embedded.backend, ["[v]"]))
    assert closed_vocabulary(letter_tokenizer().backend_tokenizer) is None and closed_vocabulary(None) is None
    assert notes("a dog and a cat", None) == []


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("a white dog on a red chair", ["dog and chair"]),
        ("a dog wearing a hat and a red scarf", ["hat and scarf"]),
        ("a dog with blue ears wearing a hat, and a cat", ["dog and cat", "ears and hat"]),
        ("a palm tree", []),
        ("a blue dog wearing a red hat", []),
        ("a unicorn", []),
    ],
)
def test_notes_warn_of_several_objects_or_details(prompt: str, names: list[str], embedded: Vocabulary) -> None:
    found = notes(prompt, embedded)
    assert len(found) == len(names) and all(name in note for name, note in zip(names, found, strict=True))


@pytest.mark.parametrize("name", ["mvdream-toybox", "sds-toybox", "sample-toybox"])
def test_refused_prompt_starts_no_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", name, "prompt=a corgi", f"out={tmp_path / 'run'}"]) == 2
    assert "'corgi' by dog" in capsys.readouterr().err and not list(tmp_path.iterdir())
    load(name, ["prompt=a corgi", "prompt_check=off"]).check()


def test_prompt_check_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from threedgen import cli; code = cli.main(['prompt=a corgi', 'out=run']);"
        "sys.exit(code if 'torch' not in sys.modules else 'torch was loaded')"
    )
    words: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", code], **words)
    assert done.returncode == 2, done.stderr
