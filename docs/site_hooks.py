"""What mkdocs is told beside mkdocs.yml: two pages that lie beside docs/ are pages of the site as well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
BESIDE = {"weights/README.md": "weights.md", "benchmarks/README.md": "benchmarks.md"}
"""File from the root of the repository: page of the site."""


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages."""
    for place, page in BESIDE.items():
        text = (ROOT / place).read_text(encoding="utf-8").replace("](../docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to them, as a checkout has them, lead to the pages; README.md is no page, so its name stays."""
    for place, page in BESIDE.items():
        markdown = markdown.replace(f"](../{place}", f"]({page}")
    return re.sub(r"\[([^\]]*)\]\(\.\./README\.md[^)]*\)", r"\1", markdown)
