"""Finds recorded outputs of reference implementations by the beginning of their names, in any sub-folder."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT = Path(__file__).parents[1] / "parity"


def parity_files(prefix: str) -> list[Path]:
    """All ``PREFIX*.npz`` below the folder that THREEDGEN_PARITY names (default: the copies kept in tests/parity)."""
    root = Path(os.environ.get("THREEDGEN_PARITY", DEFAULT))
    return sorted(root.rglob(f"{prefix}*.npz"))
