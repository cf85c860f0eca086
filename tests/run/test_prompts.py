import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.errors import refused
from threedgen.config import ConfigError
from threedgen.run.prompts import Reading, normalise_prompt, prompt_warnings, remove_words

NASTY = st.text(alphabet=st.sampled_from("a \n\t\r\x0b\x00\x1b\u200b\u2028[]{}$`'\"\\.:/#=%é🐶\u202e"), max_size=40)


class StubPrior:
    """Prior that knows words of at most three letters, accepts ten characters and reads every prompt as "a dog"."""

    identifiers: tuple[str, ...] = ()

    def tokens_cut(self, prompt: str) -> str:
        return prompt[10:].strip()

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        return [(word, ["dog"] if word.startswith("d") else []) for word in prompt.split() if len(word) > 3]

    def read_prompt(self, prompt: str) -> Reading:
        return Reading("a dog", {"puppy": "dog"}, negated=["hat"])


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


def test_identifiers_are_whole_words() -> None:
    assert remove_words("a Sks robot with masks", ["sks"]) == "a robot with masks"
    assert remove_words("a [V] dog, [v]", ["[v]"]) == "a dog,"
    prior = StubPrior()
    prior.identifiers = ("sks",)
    missing, named = (prompt_warnings(prompt, prior) for prompt in ("a mug, tusks", "a mug, SKS"))
    assert any("sks:" in note for note in missing) and not any("sks:" in note for note in named)
