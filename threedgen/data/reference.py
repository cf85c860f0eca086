"""Pictures that users give of a thing, as adapters learnt to look at them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.geometry.picture_file import read_picture
from threedgen.guidance.mvadapter.pictures import framed
from threedgen.run.arrays import Array

from .photos import WORKING_SIZE, in_front

OPAQUE = 0.99
"""From here on nothing of a picture counts as transparent."""


def read_reference(path: str, height: int, width: int) -> Tensor:
    """The thing of a picture in the middle of a grey one (height,width,3), as adapters learnt to look at it.

    What is transparent is not the thing; of an opaque picture, a background of one colour. Raises ConfigError.
    """
    picture = read_picture(Path(path).expanduser(), key="image", most=WORKING_SIZE).convert("RGBA")
    return reference(np.asarray(picture, np.float32) / 255, height, width, path)


def reference(cut: Array, height: int, width: int, name: str) -> Tensor:
    """The same of pixels (h,w,4) in [0,1]; ``name``: of the picture, for what is wrong with it."""
    if cut[..., 3].min() > OPAQUE:
        cut = np.dstack([cut[..., :3], in_front(cut[..., :3])]).astype(np.float32)
        if not cut[..., 3].any():
            raise ConfigError(f"{name} shows nothing but its background", "image")
        if cut[..., 3].min() > OPAQUE:
            raise ConfigError(
                f"it cannot be told what in {name} is the thing and what is behind it; save it as PNG with a "
                "transparent background, or take a picture before a background of one colour",
                "image",
            )
    return framed(torch.from_numpy(cut), height, width)
