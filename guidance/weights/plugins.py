"""Weights that are added to a 2D model: attention between views, adapters (no torch here)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from threedgen.config.errors import ConfigError, did_you_mean, nearest
from threedgen.places import folder
from threedgen.run.made_by import made_by

from .files import sniff
from .loading import Identity, existing

Key = Literal["blocks", "adapter"]
FILES: dict[Key, dict[str, str]] = {
    "blocks": {f"toybox-{name}": f"toybox-mvdiffusion/{name}" for name in ("panorama", "outpaint", "depth")},
    "adapter": {f"toybox-{name}": f"toybox-mvadapter/{name}" for name in ("rays", "geometry")},
}
"""Names and their files in weights/ without .safetensors, trained on the embedded 2D model."""
SOURCES: dict[Key, str] = {
    "blocks": "train-mvdiffusion leaves one, RUN/blocks.safetensors, and the released ones (pano.ckpt, "
    "pano_outpaint.ckpt, depth.ckpt) are linked on github.com/Tangshitao/MVDiffusion",
    "adapter": "train-mvadapter leaves one, RUN/adapter.safetensors, and the released ones are on the hub, "
    "`hf download huanngzh/mv-adapter`",
}


def embedded_files(key: Key) -> dict[str, Path]:
    """Return the names that this installation has, and their files."""
    paths = {name: folder("weights") / f"{file}.safetensors" for name, file in FILES[key].items()}
    return {name: path for name, path in paths.items() if path.is_file()}


def choice(key: Key, others: str) -> str:
    """Return the names that this installation has, then `others`, for a help text."""
    return ", ".join([*embedded_files(key), others])


def locate(key: Key, name: str) -> Path:
    """Return the file of an embedded name or of a path. Raises ConfigError for `key`."""
    here = embedded_files(key)
    if name in here:
        return here[name]
    if name in FILES[key]:
        raise ConfigError(f"{name} does not come with this installation; {SOURCES[key]}", key)
    found = existing(name)
    if found is None or not found.is_file():
        if made := made_by(name):
            raise ConfigError(f"there is no file {name!r} yet; {made}", key)
        known = f" (known by name: {', '.join(here)});" if here else ";"
        hint = did_you_mean(nearest(name, here)) or known
        raise ConfigError(f"there is no file {name!r}{hint} {SOURCES[key]}", key)
    return found


def check(key: Key, name: str | None) -> None:
    """Raise ConfigError if a file is named and does not look like weights."""
    if name is not None:
        sniff(locate(key, name))


def identify(key: Key, name: str | None) -> dict[str, Identity]:
    """Return the identity of the named file by its key; {} without a name. Raises ConfigError."""
    return {} if name is None else {key: Identity.of(locate(key, name))}
