import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.errors import refused
from tests.support.tiny_prior import tiny_text_encoder, tiny_unet, tiny_vae, word_tokenizer
from threedgen.config import ConfigError
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.prompts import Reading, normalise_prompt, prompt_warnings, reading_notes, remove_words, with_suffix

NASTY = st.text(alphabet=st.sampled_from("a \n\t\r\x0b\x00\x1b\u200b\u2028[]{}$`'\"\\.:/#=%é🐶\u202e"), max_size=40)
LONG = "a red dog and " * 800  # more than 10,000 characters


class StubPrior:
    """Prior that knows words of at most three letters, accepts ten characters and reads every prompt as "a dog"."""

    identifiers: tuple[str, ...] = ()

    def tokens_cut(self, prompt: str) -> str:
        return prompt[10:].strip()

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        return [(word, ["dog"] if word.startswith("d") else []) for word in prompt.split() if len(word) > 3]

    def read_prompt(self, prompt: str) -> Reading:
        return Reading("a dog", {"puppy": "dog"}, negated=["hat"])


@pytest.fixture(scope="module")
def prior() -> MVDream:
    return MVDream(tiny_unet(), tiny_vae(), tiny_text_encoder(), word_tokenizer(), dtype="fp32")


@pytest.mark.parametrize("prompt", ["", " ", "\n\t ", "\x00", "\x1b\u200b", "\u2028"])
def test_normalise_prompt_refuses_an_empty_prompt(prompt: str) -> None:
    for key in ("prompt", "negative_prompt"):
        with refused(key, f'{key}="') as caught:
            normalise_prompt(prompt, key=key)
        assert "\n" not in str(caught.value)


@given(st.one_of(NASTY, st.text(max_size=60)))
def test_normalise_prompt_changes_only_white_space(prompt: str) -> None:
    try:
        text = normalise_prompt(prompt)
    except ConfigError:
        assert not any(c.isprintable() and not c.isspace() for c in prompt)
        return
    assert text == " ".join(prompt.split()) == normalise_prompt(text)
    assert [c for c in text if not c.isspace()] == [c for c in prompt if not c.isspace()]
    assert len(text.splitlines()) == 1


@given(NASTY.map(lambda text: f"dog{text}"))
def test_warnings_escape_control_characters(prompt: str) -> None:
    for note in prompt_warnings(prompt, StubPrior()):
        assert note.isprintable() and len(note) < 1000


def test_line_breaks_give_a_warning(caplog: pytest.LogCaptureFixture, prior: MVDream) -> None:
    warnings = prompt_warnings("a red\ndog", prior)
    assert len(warnings) == 1 and warnings == [record.getMessage() for record in caplog.records]
    assert prompt_warnings("a red  dog \n", prior) == []
    assert normalise_prompt("a red\r\n  dog") == "a red dog"


def test_truncation_gives_a_warning(prior: MVDream) -> None:
    (note,) = prompt_warnings(LONG, prior)
    assert "'dog and a red dog and" in note and "...'" in note and len(note) < 160
    assert prior.encode_prompt([LONG]).shape == (1, 16, 24)
    assert prior.encode_prompt([LONG]).equal(prior.encode_prompt([LONG[:60]]))


def test_prompt_warnings_name_the_words_concerned(prior: MVDream) -> None:
    unknown, material, received = prompt_warnings("a red shiny dog with a dgo zzzz", prior, used_word="shiny")
    assert "'dgo' (nearest: dog), 'zzzz'" in unknown and "'red'" not in unknown and "'shiny'" not in unknown
    assert "'shiny'" in material and received.endswith("'a red dog'")
    unknown, replaced, negated, received = prompt_warnings("a dxyz cat something else", StubPrior())
    assert "'dxyz' (nearest: dog), 'something'" in unknown
    assert "'puppy'" in replaced and "'dog'" in replaced and "negative_prompt='hat'" in negated
    assert received.endswith("'a dog'")
    notes = prompt_warnings("a cat", StubPrior(), takes_negative=False)
    assert not any("negative_prompt" in note for note in notes)
    assert any("'zzzz'" in note for note in reading_notes(Reading("", ignored=["red", "zzzz"]), ["red"]))


def test_identifiers_are_whole_words() -> None:
    assert remove_words("a Sks robot with masks", ["sks"]) == "a robot with masks"
    assert remove_words("a [V] dog, [v]", ["[v]"]) == "a dog,"
    prior = StubPrior()
    prior.identifiers = ("sks",)
    missing, named = (prompt_warnings(prompt, prior) for prompt in ("a mug, tusks", "a mug, SKS"))
    assert any("sks:" in note for note in missing) and not any("sks:" in note for note in named)


def test_with_suffix_adds_it_once() -> None:
    assert with_suffix("a dog", ", 3d asset") == "a dog, 3d asset"
    for prompt in ("a dog, 3D asset", "3d dog"):
        assert with_suffix(prompt, ", 3d asset") == prompt
    assert with_suffix("a dog", "") == "a dog"
