"""Find folders of the project, in a checkout and in an installed package."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """Return the path of a project folder such as `configs`.

    An installed package contains the folder; in a checkout it lies beside the package.
    """
    inside = _HERE / name
    return inside if inside.is_dir() else _HERE.parent / name
