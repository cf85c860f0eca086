"""Cameras in a JSON file, the one form in which tasks leave them and take them:

    {"axes": "opengl", "height": 192, "width": 256, "c2w": [[[...], ...], ...], "K": [[[fx, 0, cx], ...], ...],
     "files": ["frames/0000.png", ...], "prompts": ["a kitchen", ...]}

c2w: camera-to-world matrices 4 x 4, one for each picture; those of a panorama only turn.  axes: opengl (y up, looking
along -z) or opencv (y down, along z).  K: in pixels from the picture's upper left corner, so that its middle is at
(width / 2, height / 2); one matrix for all pictures, or one for each. Instead: fov, the vertical angle in degrees.
files: the pictures, from the folder of this file on.  prompts: what was drawn. Both may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import radians
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import parse_json, read_text
from threedgen.run.disk import write_json

from .cameras import Cameras, Projection
from .poses import Poses, opencv_axes, world_to_camera

CAMERAS = "cameras.json"
MOST = 100_000
"""Cameras of a file."""


@dataclass(frozen=True)
class CamerasFile:
    """N cameras and, where the file has them, the names of their pictures and what these show."""

    at: Cameras
    files: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None


def write_cameras(path: Path, at: Cameras, files: list[str], prompts: list[str]) -> None:
    """Writes cameras with the names of their pictures and what these show. Raises OSError."""
    sides = {"axes": "opengl", "height": at.height, "width": at.width}
    matrices = {"K": at.K.double().tolist(), "c2w": at.c2w.double().tolist()}
    write_json(path, sides | matrices | {"files": files, "prompts": prompts})


def read_cameras(
    path: Path, key: str, poses: Poses = "c2w", size: tuple[int, int] | None = None, fov: float | None = None
) -> CamerasFile:
    """Reads two or more cameras.

    poses: what the matrices are.  size, fov: (H,W) and the vertical angle in degrees, if the file has none. Raises
    ConfigError, naming ``key``.
    """
    text = read_text(path, key)
    try:
        return _parsed(parse_json(text), poses, size, fov)
    except ValueError as error:
        raise ConfigError(f"{path} is no file of cameras: {error}", key) from None


def _parsed(tree: Any, poses: Poses, size: tuple[int, int] | None, fov: float | None) -> CamerasFile:
    """Raises ValueError, as do all below."""
    if not isinstance(tree, dict) or "c2w" not in tree:
        raise ValueError("it should be an object with c2w, a list of 4 x 4 matrices")
    axes = tree.get("axes")
    if axes not in ("opengl", "opencv"):
        raise ValueError("it should say its axes, opengl (y up, looking along -z) or opencv (y down, along z)")
    c2w = _rigid(_matrices(tree["c2w"], 4, "c2w"))
    c2w = world_to_camera(c2w) if poses == "w2c" else c2w
    height, width = _sides(tree, size)
    projection = _projection(tree, len(c2w), height, width, fov)
    at = Cameras((opencv_axes(c2w) if axes == "opencv" else c2w).float(), projection, height, width)
    return CamerasFile(at, _texts(tree, "files", len(c2w)), _texts(tree, "prompts", len(c2w)))


def _sides(tree: dict[str, Any], size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the pictures; ``size`` if nothing in the file depends on them."""
    height, width = tree.get("height"), tree.get("width")
    if size is not None and height is None is width and "K" not in tree:
        return size
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ValueError("it should say height and width of its pictures, in pixels")
    return height, width


def _matrices(value: Any, side: int, name: str, count: int | None = None) -> Tensor:
    """A list of matrices (N,side,side), float64; with ``count`` also a single one for all."""
    try:
        found = np.array(value, np.float64)
    except (TypeError, OverflowError, ValueError):
        found = np.zeros(0)
    if count is not None and found.ndim == 2:
        found = np.repeat(found[None], count, axis=0)
    if (
        found.ndim != 3
        or found.shape[1:] != (side, side)
        or not np.isfinite(found).all()
        or not 2 <= len(found) <= MOST
    ):
        raise ValueError(f"{name} should be a list of 2 or more matrices {side} x {side}")
    return torch.from_numpy(found)


def _rigid(c2w: Tensor) -> Tensor:
    """Poses (N,4,4) that turn and move only."""
    R = c2w[:, :3, :3]
    off = (R @ R.mT - torch.eye(3, dtype=R.dtype)).abs().amax((1, 2))
    off = torch.maximum(off, (c2w[:, 3] - c2w.new_tensor([0, 0, 0, 1])).abs().amax(1))
    wrong = (off > 1e-2) | (torch.linalg.det(R) < 0)
    if wrong.any():
        which = int(wrong.int().argmax())
        raise ValueError(f"matrix {which} of c2w is no pose: it should turn and move, not stretch or mirror")
    return c2w


def _projection(tree: dict[str, Any], count: int, height: int, width: int, fov: float | None) -> Projection:
    if "K" not in tree:
        fov = tree.get("fov", fov)
        if not isinstance(fov, int | float) or not 0 < fov < 180:
            raise ValueError("it should have K, or fov, an angle between 0 and 180 degrees")
        return Projection.perspective(torch.full((count,), radians(fov)), height, width)
    K = _matrices(tree["K"], 3, "K", count)
    if len(K) != count or (K[:, [0, 1], [0, 1]] <= 0).any():
        raise ValueError(f"K should be one matrix, or {count}, of focal lengths above 0")
    return Projection(K.float())


def _texts(tree: dict[str, Any], name: str, count: int) -> tuple[str, ...] | None:
    found = tree.get(name)
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != count or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{name} should be a list of {count} texts, one for each camera")
    return tuple(found)
