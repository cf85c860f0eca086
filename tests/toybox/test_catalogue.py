import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "toybox-words.md"
COMMAND = "python docs/catalogue.py docs/toybox-words.md"
catalogue = SimpleNamespace(**runpy.run_path(str(DOCS / "catalogue.py")))


def test_catalogue_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert catalogue.update(page) == page, f"run {COMMAND}"
    assert COMMAND in page


def test_update_keeps_the_rest_of_the_page() -> None:
    page = f"# Title\n\n{catalogue.BEGIN}\nOUTDATED\n{catalogue.END}\n\nmore\n"
    new = catalogue.update(page)
    assert new.startswith("# Title\n\n") and new.endswith(f"{catalogue.END}\n\nmore\n") and "OUTDATED" not in new
    assert catalogue.update(new) == new
    with pytest.raises(ValueError, match=catalogue.BEGIN):
        catalogue.update("# Title\n")
