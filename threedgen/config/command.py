"""Command lines of this program for messages: how to call it, and how to install optional packages."""

import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Folder that contains the package: the root of a checkout, or the site-packages folder of an installation."""


def in_checkout() -> bool:
    """Return whether the program runs from a checkout, which has launch.py beside the package."""
    return (ROOT / "launch.py").is_file()


def command(*words: str) -> str:
    """Return the command line that calls this program with the arguments `words`, quoted for a shell."""
    return " ".join(["python launch.py" if in_checkout() else "threedgen", *map(shlex.quote, words)])


def install(extra: str) -> str:
    """Return the pip command that installs the packages of one `extras_require` group of setup.py."""
    return f"pip install -e '.[{extra}]'" if in_checkout() else f"pip install 'threedgen[{extra}]'"
