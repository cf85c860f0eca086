"""The names of weights that are added to a 2D model: attention between views, adapters (no torch here).

A name is told, in help and messages, as soon as its file lies in weights/.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from threedgen import folder

Key = Literal["blocks", "adapter"]
FILES: dict[Key, dict[str, str]] = {
    "blocks": {f"toybox-{name}": f"toybox-mvdiffusion/{name}" for name in ("panorama", "outpaint", "depth")},
    "adapter": {f"toybox-{name}": f"toybox-mvadapter/{name}" for name in ("rays", "geometry")},
}
"""Where each has its place in weights/, without .safetensors; they are trained on the 2D model that comes with it."""


def here(key: Key) -> dict[str, Path]:
    """The names that this installation has, and their files."""
    places = {name: folder("weights") / f"{file}.safetensors" for name, file in FILES[key].items()}
    return {name: path for name, path in places.items() if path.is_file()}


def choice(key: Key, others: str) -> str:
    """The names that this installation has, before `others`, as a help text lists them."""
    return ", ".join([*here(key), others])
