"""Shell commands shown in messages: calls of this program, and installations of optional packages."""

import os
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Folder that contains this package: the root of a checkout, or the site-packages folder of an installation."""


def in_checkout() -> bool:
    return (ROOT / "launch.py").is_file()


def command(*words: str) -> str:
    """Return a shell command that runs this program with the arguments `words`, such as "threedgen --list"."""
    quoted = subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)  # cmd.exe needs double quotes
    return f"{'python launch.py' if in_checkout() else 'threedgen'} {quoted}".rstrip()


def install(extra: str) -> str:
    """Return the shell command ("pip install ...") that installs an extra: a group of optional packages in setup.py.

    `extra` is the name of the group, such as "ray".
    """
    return f'pip install -e ".[{extra}]"' if in_checkout() else f'pip install "threedgen[{extra}]"'
