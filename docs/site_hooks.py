"""mkdocs hooks: add the pages outside docs/, such as the model card and the benchmarks, to the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "weights/README.md": "weights.md",
    "benchmarks/README.md": "benchmarks.md",
    "addons/blender/README.md": "blender.md",
}
"""Files relative to the root of the repository, and their names in the site."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of `OUTSIDE`."""
    for place, page in OUTSIDE.items():
        text = re.sub(r"\]\((\.\./)+docs/", "](", (ROOT / place).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to these files at their pages; replace links to README.md, which is no page, by their text."""
    for place, page in OUTSIDE.items():
        markdown = markdown.replace(f"](../{place}", f"]({page}")
    return re.sub(r"\[([^\]]*)\]\(\.\./README\.md[^)]*\)", r"\1", markdown)
