"""What a user types where they stand: in a checkout, or with threedgen installed."""

from __future__ import annotations

import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The root of a checkout; of an installation, the folder of all packages."""


def in_checkout() -> bool:
    """Does launch.py lie beside the package?"""
    return (ROOT / "launch.py").is_file()


def command(*words: str) -> str:
    """The command line with these words, as a shell takes them: `python launch.py ...` in a checkout, else
    `threedgen ...`."""
    return " ".join(["python launch.py" if in_checkout() else "threedgen", *map(shlex.quote, words)])


def install(extra: str) -> str:
    """The command that installs the packages of an extra of setup.py."""
    return f"pip install -e '.[{extra}]'" if in_checkout() else f"pip install 'threedgen[{extra}]'"
