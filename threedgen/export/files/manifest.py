"""asset.json, which says what an asset's folder holds (no torch here)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "asset.json"


def read(folder: Path) -> dict[str, Any]:
    """asset.json of a folder; {} if there is none that can be read."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("files", {}), dict) else {}
