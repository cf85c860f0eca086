"""Reads the archives of Scene Representation Networks (Sitzmann et al. 2019) and whatever has their layout.

Which files these are, see ``layout.py``; what must be right about them, see ``scene_files.py``. Poses become those of
``threedgen.geometry.cameras`` (OpenGL axes). The archives' world has z up, which is how it is taken here too;
``up="y"`` turns a world whose y points up.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.picture_file import read_picture
from threedgen.geometry.poses import opencv_axes, opengl_to_blender
from threedgen.geometry.views import Views
from threedgen.run.arrays import Array

from .scene_files import SceneFiles, read_scene

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Instance(SceneFiles):
    """One scene on the disk; ``at``: its cameras in native resolution."""

    at: Cameras

    def views(self, index: Sequence[int] | None = None, size: int | None = None) -> Views:
        """Pictures and cameras of the views at the places ``index`` (default: all), ``size`` pixels a side (default:
        as they are). Raises ConfigError naming a file that cannot be read."""
        chosen = list(range(len(self)) if index is None else index)
        views = Views(torch.from_numpy(np.stack([_pixels(self.files[k]) for k in chosen])), self.at.select(chosen))
        return views if size is None else views.resized(size)

    def verify(self) -> None:
        """Are the pictures whole? Reads all files. Raises ConfigError naming one that is not."""
        for path in self.files:
            read_picture(path)


def open_instance(folder: Path | str, up: Literal["z", "y"] = "z", least: int = 2, gaps: bool = False) -> Instance:
    """A scene with everything but its pixels read and checked, as ``read_scene`` does. Raises ConfigError."""
    scene = read_scene(folder, least, gaps)
    c2w = opencv_axes(torch.from_numpy(scene.poses).double())
    c2w = opengl_to_blender(c2w) if up == "y" else c2w
    projection = Projection(torch.from_numpy(scene.K).float())
    return Instance(**vars(scene), at=Cameras(c2w.float(), projection, scene.height, scene.width))


def _pixels(path: Path) -> Array:
    """(H, W, 3) in [0, 1]. What is transparent is laid on white, the background of the archives, and said once."""
    pixels: Array = np.asarray(read_picture(path), np.float32) / np.float32(255)
    if pixels.shape[-1] == 3:
        return pixels
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() < 1 and path.parent not in _SAID:
        _SAID.add(path.parent)
        logger.warning("%s has transparent pixels: they are taken as white", path)
    return rgb * alpha + (1 - alpha)


_SAID: set[Path] = set()
