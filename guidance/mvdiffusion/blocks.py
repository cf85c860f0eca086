"""Where the weights of the attention between views are (no torch here)."""

from __future__ import annotations

from pathlib import Path

from threedgen import folder
from threedgen.config.errors import ConfigError
from threedgen.guidance.weights.loading import existing

SHIPPED = ("toybox-panorama", "toybox-outpaint", "toybox-depth")
"""Those that threedgen looks for among its weights, trained on its 2D model."""


def locate(blocks: str) -> Path:
    """The file that a name in ``SHIPPED`` or a path names. Raises ConfigError."""
    if blocks in SHIPPED:
        path = folder("weights") / "toybox-mvdiffusion" / f"{blocks.removeprefix('toybox-')}.safetensors"
        if not path.is_file():
            made = "the config train-mvdiffusion-toybox makes such, RUN/blocks.safetensors"
            raise ConfigError(f"this installation lacks the weights {blocks}; {made}", "blocks")
        return path
    found = existing(blocks)
    if found is None or not found.is_file():
        raise ConfigError(
            f"there is no file {blocks!r}; train-mvdiffusion leaves one, RUN/blocks.safetensors, and the released ones "
            "(pano.ckpt, pano_outpaint.ckpt, depth.ckpt) are linked on github.com/Tangshitao/MVDiffusion",
            "blocks",
        )
    return found
