import runpy
from pathlib import Path

import pytest

from threedgen.guidance.weights.tokens import token_ids, tokens_cut
from threedgen.toybox.training.text_encoder import END, MAX_TOKENS, PAD, START, UNKNOWN, train_tokenizer
from threedgen.toybox.world.grammar import NOUNS, WORDINGS, Spec, caption
from threedgen.toybox.world.open_toybox import OpenToybox

DOCS = Path(__file__).parents[2] / "docs"


def test_catalogue_page_is_up_to_date() -> None:
    page = (DOCS / "toybox-words.md").read_text(encoding="utf-8")
    command = "python docs/catalogue.py docs/toybox-words.md"
    update = runpy.run_path(str(DOCS / "catalogue.py"))["update"]
    assert update(page) == update(page.replace("### Nouns", "OUTDATED")) == page, f"run {command}"
    assert command in page


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


def words(tokenizer, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


def test_special_tokens_come_first_and_enclose_a_prompt(tokenizer) -> None:
    assert words(tokenizer, [0, 1, 2, 3]) == [PAD, UNKNOWN, START, END]
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (0, 2, 3), "CLIPTextModel pools at another token if the end token is 2"
    ids = token_ids(tokenizer, ["a blue dog", "a dog"], 7)
    assert words(tokenizer, ids[0].tolist()) == [START, "a", "blue", "dog", END, PAD, PAD]
    assert words(tokenizer, ids[1].tolist()) == [START, "a", "dog", END, PAD, PAD, PAD]


def test_all_object_captions_are_known_and_fit(tokenizer) -> None:
    texts = [OpenToybox(3).asset(index).caption for index in range(400)]
    for word, entry in NOUNS.items():
        for part in ("", *entry.parts, *entry.wears):
            full = Spec(word, "turquoise", "small", part, "orange" if part else "")
            texts += [caption(full, wording) for wording in range(WORDINGS)]
    found = {text: tokenizer(text).input_ids for text in texts}
    assert not [text for text, ids in found.items() if UNKNOWN in words(tokenizer, ids)]
    assert 10 < max(map(len, found.values())) <= MAX_TOKENS, "the longest caption is cut off"


def test_case_width_and_spaces_are_normalised(tokenizer) -> None:
    for text in ("", " ", "\n\t "):
        assert words(tokenizer, tokenizer(text).input_ids) == [START, END]
        assert token_ids(tokenizer, [text], 5)[0].tolist() == token_ids(tokenizer, [""], 5)[0].tolist()
    plain = tokenizer("a red hat").input_ids
    for text in ("A RED Hat", "  a   red\nhat ", "\uff41 red h\uff41t"):  # fullwidth letters
        assert tokenizer(text).input_ids == plain, text


def test_words_beyond_the_limit_are_cut(tokenizer) -> None:
    text = "a dog " * 20
    assert tokens_cut(tokenizer, text, MAX_TOKENS) == " ".join(["a dog"] * (20 - (MAX_TOKENS - 2) // 2))
    assert token_ids(tokenizer, [text], MAX_TOKENS)[0, -1] == tokenizer.eos_token_id
