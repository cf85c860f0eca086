"""Catalogue of the toybox in docs/toybox-words.md."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from threedgen.toybox.world.grammar import ACCESSORIES, COLOURS, NOUNS, SIZES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "toybox-words.md"
COMMAND = "python docs/catalogue.py docs/toybox-words.md"
catalogue = SimpleNamespace(**runpy.run_path(str(DOCS / "catalogue.py")))


def test_catalogue_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert catalogue.update(page) == page, f"run {COMMAND}"
    assert COMMAND in page


def test_catalogue_lists_all_words() -> None:
    text = catalogue.markdown()
    rows = {line.split("|")[1].strip(" *"): line for line in text.splitlines() if line.startswith("| ")}
    for word, entry in NOUNS.items():
        parts, wears = (cell.strip() for cell in rows[word].split("|")[2:4])
        assert parts == (", ".join(entry.parts) or "-"), word
        listed, _, missing = wears.partition("all but ")
        worn = set(ACCESSORIES) - set(missing.split(", ")) if missing or wears == "all" else set(listed.split(", "))
        assert worn - {"", "-"} == set(entry.wears), word
        assert (f"*{word}*" in rows[word]) == (not entry.front)
    assert set(COLOURS) | {size for size in SIZES if size} <= set(rows)
    assert all(f" {word}" in text for word in ACCESSORIES)
    assert set(catalogue.SIZE_WORDS) == {size for size in SIZES if size}


def test_update_keeps_the_rest_of_the_page() -> None:
    page = f"# Title\n\n{catalogue.BEGIN}\nOUTDATED\n{catalogue.END}\n\nmore\n"
    new = catalogue.update(page)
    assert new.startswith("# Title\n\n") and new.endswith(f"{catalogue.END}\n\nmore\n") and "OUTDATED" not in new
    assert catalogue.update(new) == new
    with pytest.raises(ValueError, match=catalogue.BEGIN):
        catalogue.update("# Title\n")
