"""The pages of the documentation: what they link to is there, and every config has its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from threedgen.config import shipped

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_project_that_are_named_are_there(page: Path) -> None:
    """`guidance/prior.py`, `tests/test_imports.py`: names of files in backticks, from the root or from threedgen/."""
    named = re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|yaml))`", page.read_text(encoding="utf-8"))
    missing = [name for name in named if not any((root / name).exists() for root in (ROOT, ROOT / "threedgen"))]
    assert not missing


def test_every_config_is_in_the_table() -> None:
    table = (ROOT / "docs" / "configs.md").read_text(encoding="utf-8")
    assert not [name for name in shipped() if f"`{name}`" not in table]


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert not [
        page.name for page in ROOT.glob("docs/*.md") if page.name != "README.md" and f"({page.name})" not in index
    ]
