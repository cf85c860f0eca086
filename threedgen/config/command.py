"""The command of this program, in a checkout or installed, as messages print it."""

from __future__ import annotations

import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Root of a checkout; of an installation, the folder of all packages."""


def in_checkout() -> bool:
    """Return whether launch.py is beside the package."""
    return (ROOT / "launch.py").is_file()


def command(*words: str) -> str:
    """Return the command line with these words, quoted for a shell."""
    return " ".join(["python launch.py" if in_checkout() else "threedgen", *map(shlex.quote, words)])


def install(extra: str) -> str:
    """Return the command that installs an extra of setup.py."""
    return f"pip install -e '.[{extra}]'" if in_checkout() else f"pip install 'threedgen[{extra}]'"
