"""Where the weights are that are added to a 2D model: attention between views, adapters (no torch here)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from threedgen import folder
from threedgen.config.errors import ConfigError, did_you_mean, nearest
from threedgen.run.made_by import made_by

from .loading import existing

Key = Literal["blocks", "adapter"]
SHIPPED: dict[Key, dict[str, str]] = {
    "blocks": {f"toybox-{name}": f"toybox-mvdiffusion/{name}" for name in ("panorama", "outpaint", "depth")},
    "adapter": {f"toybox-{name}": f"toybox-mvadapter/{name}" for name in ("rays", "geometry")},
}
"""Those that come with threedgen, trained on its 2D model, and their files in weights/."""
OTHERS: dict[Key, str] = {
    "blocks": "train-mvdiffusion leaves one, RUN/blocks.safetensors, and the released ones (pano.ckpt, "
    "pano_outpaint.ckpt, depth.ckpt) are linked on github.com/Tangshitao/MVDiffusion",
    "adapter": "train-mvadapter leaves one, RUN/adapter.safetensors, and the released ones are on the hub, "
    "`hf download huanngzh/mv-adapter`",
}


def locate(key: Key, name: str) -> Path:
    """The file of a name in ``SHIPPED[key]``, or of a path. Raises ConfigError for ``key``."""
    shipped = {own: folder("weights") / f"{file}.safetensors" for own, file in SHIPPED[key].items()}
    if name in shipped:
        if not shipped[name].is_file():
            raise ConfigError(f"this installation lacks the weights {name}; {OTHERS[key]}", key)
        return shipped[name]
    found = existing(name)
    if found is None or not found.is_file():
        if made := made_by(name):
            raise ConfigError(f"there is no file {name!r} yet; {made}", key)
        here = [own for own, path in shipped.items() if path.is_file()]
        known = f" (known by name: {', '.join(here)});" if here else ";"
        raise ConfigError(f"there is no file {name!r}{did_you_mean(nearest(name, here)) or known} {OTHERS[key]}", key)
    return found
