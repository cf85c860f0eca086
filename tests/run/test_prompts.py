"""Prompts: any text is taken as it is, and what will not be heeded is said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_prior import letter_tokenizer, tiny_text_encoder, tiny_unet, tiny_vae, word_tokenizer
from threedgen.config import ConfigError
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.prompts import tidy, warn_about, with_suffix

NASTY = st.text(alphabet=st.sampled_from("a \n\t\r\x0b\x00\x1b\u200b\u2028[]{}$`'\"\\.:/#=%é🐶\u202e"), max_size=40)
LONG = "a red dog and " * 800  # more than 10,000 characters


class Stub:
    """A prior that knows short words and takes ten characters."""

    identifiers = ()

    def tokens_cut(self, prompt: str) -> str:
        return prompt[10:].strip()

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        return [(word, ["dog"] if word.startswith("d") else []) for word in prompt.split() if len(word) > 3]


@pytest.fixture(scope="module")
def prior() -> MVDream:
    return MVDream(tiny_unet(), tiny_vae(), tiny_text_encoder(), word_tokenizer(), dtype="fp32")


def notes(prompt: str, prior: Any) -> list[str]:
    return warn_about(prompt, prior)


@pytest.mark.parametrize("prompt", ["", " ", "\n\t ", "\x00", "\x1b\u200b", "\u2028"])
def test_an_empty_prompt_is_a_mistake(prompt: str) -> None:
    with pytest.raises(ConfigError, match='prompt: is empty; say what to make, such as prompt="') as caught:
        tidy(prompt)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="^negative_prompt: is empty"):
        tidy(prompt, key="negative_prompt")


@given(st.one_of(NASTY, st.text(max_size=60)))
def test_any_other_text_stays_what_it_is(prompt: str) -> None:
    try:
        text = tidy(prompt)
    except ConfigError:
        assert not any(c.isprintable() and not c.isspace() for c in prompt)
        return
    assert text == " ".join(prompt.split()) == tidy(text)
    assert [c for c in text if not c.isspace()] == [c for c in prompt if not c.isspace()]
    assert len(text.splitlines()) == 1


@given(NASTY.map(lambda text: f"dog{text}"))
def test_nothing_of_a_prompt_reaches_the_terminal_as_a_command(prompt: str) -> None:
    for note in notes(prompt, Stub()):
        assert note.isprintable() and len(note) < 1000


def test_lines_are_joined_and_that_is_said(caplog: pytest.LogCaptureFixture, prior: MVDream) -> None:
    said = notes("a red\ndog", prior)
    assert said == ["the lines of the prompt are taken as one"] == [record.getMessage() for record in caplog.records]
    assert notes("a red  dog \n", prior) == []
    assert tidy("a red\r\n  dog") == "a red dog"


def test_what_does_not_fit_is_cut_and_said(prior: MVDream) -> None:
    (note,) = notes(LONG, prior)
    assert note.startswith("the prompt is too long for this prior: everything from 'dog and a red dog and")
    assert note.endswith("...' on has no effect") and len(note) < 160
    assert prior.encode_prompt([LONG]).shape == (1, 16, 24)
    assert prior.encode_prompt([LONG]).equal(prior.encode_prompt([LONG[:60]]))


def test_a_word_of_ten_thousand_letters(prior: MVDream) -> None:
    (note,) = notes("a red " + "d" * 10_000, prior)
    assert "does not know 'ddddd" in note and len(note) < 160
    letters = MVDream(tiny_unet(), tiny_vae(), tiny_text_encoder(vocab=80), letter_tokenizer(), dtype="fp32")
    (note,) = notes("d" * 10_000, letters)
    assert "too long" in note and len(note) < 160


def test_unknown_words_are_named_with_the_nearest_known_ones(prior: MVDream) -> None:
    (note,) = notes("a red dgo with a zzzz", prior)
    assert note == "this prior does not know 'dgo' (nearest: dog), 'zzzz'; it goes on without them"
    (note,) = notes("a red dgo", prior)
    assert note == "this prior does not know 'dgo' (nearest: dog); it goes on without it"


def test_only_some_of_many_unknown_words_are_shown() -> None:
    class Knowing(Stub):
        def tokens_cut(self, prompt: str) -> str:
            return ""

    (note,) = notes(" ".join(f"word{n}" for n in range(30)), Knowing())
    assert "'word7'" in note and "'word8'" not in note and "and 22 more" in note


def test_words_that_are_cut_off_are_not_called_unknown() -> None:
    said = notes("a dog and  something else", Stub())
    assert len(said) == 1 and "'something else' on" in said[0]


@pytest.mark.parametrize("prompt", ["🐶", "[red]dog[/red]", "$HOME `ls` ../../etc", "a \x1b[31mdog", "{{x}} %s %(a)d"])
def test_odd_prompts_are_encoded_as_they_are(prior: MVDream, prompt: str) -> None:
    said = notes(prompt, prior)
    assert all(note.isprintable() for note in said) and bool(said) == ("[red]" not in prompt)
    assert prior.encode_prompt([tidy(prompt)]).isfinite().all()


def test_a_suffix_is_added_once() -> None:
    assert with_suffix("a dog", ", 3d asset") == "a dog, 3d asset"
    for prompt in ("a dog, 3D asset", "3d dog"):
        assert with_suffix(prompt, ", 3d asset") == prompt
    assert with_suffix("a dog", "") == "a dog"
