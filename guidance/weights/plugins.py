"""Where the weights are that are added to a 2D model: attention between views, adapters (no torch here)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from threedgen import folder
from threedgen.config.errors import ConfigError, did_you_mean, nearest

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
    shipped = SHIPPED[key]
    if name in shipped:
        path = folder("weights") / f"{shipped[name]}.safetensors"
        if not path.is_file():
            raise ConfigError(f"this installation lacks the weights {name}; {OTHERS[key]}", key)
        return path
    found = existing(name)
    if found is None or not found.is_file():
        meant = did_you_mean(nearest(name, shipped)) or f" (known by name: {', '.join(shipped)});"
        raise ConfigError(f"there is no file {name!r}{meant} {OTHERS[key]}", key)
    return found
