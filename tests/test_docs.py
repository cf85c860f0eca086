"""The pages of the documentation: what they link to is there, and every config has its line."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from threedgen.config import shipped

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])


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
    needs = [line.split("|")[3] for line in table.splitlines() if line.startswith("| `")]
    assert not [need for need in needs if "core" in need and not re.search("second|minute|hour", need)], "how long?"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert not [
        page.name for page in ROOT.glob("docs/*.md") if page.name != "README.md" and f"({page.name})" not in index
    ]


PAGES_OF_THINGS = [page for page in sorted(ROOT.glob("docs/**/*.md")) if page.stem not in ("README", "architecture")]


@pytest.mark.parametrize("page", PAGES_OF_THINGS, ids=lambda page: page.stem)
def test_a_page_begins_with_what_one_gets(page: Path) -> None:
    """Below its title, at most three lines further: a command (indented) or a picture."""
    title, *rest = page.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ") and any(line.startswith(("    ", "![")) for line in rest[:4])


def test_every_page_has_its_place_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md")]
    assert not [page for page in pages if f" {page}\n" not in site]


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link_and_asks_nobody(tmp_path: Path) -> None:
    """`make docs`; strict, so that a missing page, file or anchor is an error. Needs the extra docs."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    asked = r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^>]*>"
    assert not [found for text in pages.values() for found in re.findall(asked, text) if 'rel="canonical"' not in found]
    for name in ("index", "api/index", "api/guidance/index", "weights/index", "export/index"):
        assert tmp_path / "site" / f"{name}.html" in pages
    api = pages[tmp_path / "site/api/guidance/index.html"]
    assert "encode_prompt" in api and "DDIM samples of P prompts" in api
