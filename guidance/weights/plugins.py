"""Where the weights are that are added to a 2D model: attention between views, adapters (no torch here)."""

from __future__ import annotations

from pathlib import Path

from threedgen.config.errors import ConfigError, did_you_mean, nearest
from threedgen.run.made_by import made_by

from .files import sniff
from .loading import Identity, existing
from .shipped import FILES, Key, here

OTHERS: dict[Key, str] = {
    "blocks": "train-mvdiffusion leaves one, RUN/blocks.safetensors, and the released ones (pano.ckpt, "
    "pano_outpaint.ckpt, depth.ckpt) are linked on github.com/Tangshitao/MVDiffusion",
    "adapter": "train-mvadapter leaves one, RUN/adapter.safetensors, and the released ones are on the hub, "
    "`hf download huanngzh/mv-adapter`",
}


def locate(key: Key, name: str) -> Path:
    """The file of a name that is ``here``, or of a path. Raises ConfigError for ``key``."""
    shipped = here(key)
    if name in shipped:
        return shipped[name]
    if name in FILES[key]:
        raise ConfigError(f"{name} does not come with this installation; {OTHERS[key]}", key)
    found = existing(name)
    if found is None or not found.is_file():
        if made := made_by(name):
            raise ConfigError(f"there is no file {name!r} yet; {made}", key)
        known = f" (known by name: {', '.join(shipped)});" if shipped else ";"
        hint = did_you_mean(nearest(name, shipped)) or known
        raise ConfigError(f"there is no file {name!r}{hint} {OTHERS[key]}", key)
    return found


def check(key: Key, name: str | None) -> None:
    """Is the file of a name or path, if there is one, one of weights? Raises ConfigError."""
    if name is not None:
        sniff(locate(key, name))


def identify(key: Key, name: str | None) -> dict[str, Identity]:
    """Which file it is, by its key, if there is one. Raises ConfigError."""
    return {} if name is None else {key: Identity.of(locate(key, name))}
