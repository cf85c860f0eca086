"""JSON file of cameras, written and read by tasks:

    {"axes": "opengl", "height": 192, "width": 256, "c2w": [[[...], ...], ...], "K": [[[fx, 0, cx], ...], ...],
     "files": ["frames/0000.png", ...], "prompts": ["a kitchen", ...]}

c2w: camera-to-world matrices (N, 4, 4). axes: opengl (y up, the camera looks along -z) or opencv (y down, the camera
looks along z). K: intrinsics in pixels, (3, 3) or (N, 3, 3); the image centre is (width / 2, height / 2). Instead of K,
the file may have fov, the vertical field of view in degrees. Optional: files, image paths relative to this file;
prompts, image captions.
"""

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

CAMERAS_FILE = "cameras.json"
MAX_CAMERAS = 100_000


@dataclass(frozen=True)
class CamerasFile:
    """Content of a cameras file: N cameras and, if the file has them, N image paths and N prompts."""

    cameras: Cameras
    files: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None


def write_cameras(path: Path, cameras: Cameras, files: list[str], prompts: list[str]) -> None:
    """Write N cameras with N image paths (relative to the file) and N prompts. Raises OSError."""
    header = {"axes": "opengl", "height": cameras.height, "width": cameras.width}
    matrices = {"K": cameras.K.double().tolist(), "c2w": cameras.c2w.double().tolist()}
    write_json(path, header | matrices | {"files": files, "prompts": prompts})


def read_cameras(
    path: Path, key: str, poses: Poses = "c2w", size: tuple[int, int] | None = None, fov: float | None = None
) -> CamerasFile:
    """Read a file of two or more cameras. Raises ConfigError with the config ``key``.

    Args:
        poses: whether the matrices in the file are camera-to-world ("c2w") or world-to-camera ("w2c").
        size: (height, width) in pixels, used if the file has neither a size nor K.
        fov: vertical field of view in degrees, used if the file has neither K nor fov.
    """
    text = read_text(path, key)
    try:
        return _parse(parse_json(text), poses, size, fov)
    except ValueError as error:
        raise ConfigError(f"{path} is not a cameras file: {error}", key) from None


def _parse(tree: Any, poses: Poses, size: tuple[int, int] | None, fov: float | None) -> CamerasFile:
    """Convert parsed JSON. This function and the functions below raise ValueError for invalid content."""
    if not isinstance(tree, dict) or "c2w" not in tree:
        raise ValueError("c2w is missing. Add a list of 4 x 4 matrices.")
    axes = tree.get("axes")
    if axes not in ("opengl", "opencv"):
        raise ValueError("axes is missing or unknown. Set opengl (y up, looking along -z) or opencv (y down, along z).")
    c2w = _require_rigid(_matrices(tree["c2w"], 4, "c2w"))
    c2w = world_to_camera(c2w) if poses == "w2c" else c2w
    height, width = _image_size(tree, size)
    projection = _projection(tree, len(c2w), height, width, fov)
    cameras = Cameras((opencv_axes(c2w) if axes == "opencv" else c2w).float(), projection, height, width)
    return CamerasFile(cameras, _texts(tree, "files", len(c2w)), _texts(tree, "prompts", len(c2w)))


def _image_size(tree: dict[str, Any], size: tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width in pixels. ``size`` is used only if the file has no K, no height and no width."""
    height, width = tree.get("height"), tree.get("width")
    if size is not None and height is None is width and "K" not in tree:
        return size
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ValueError("height or width is missing or invalid. Set both to the image size in pixels.")
    return height, width


def _matrices(value: Any, side: int, name: str, count: int | None = None) -> Tensor:
    """Convert JSON to matrices (N, side, side), float64. With ``count``, one matrix is repeated ``count`` times."""
    try:
        matrices = np.array(value, np.float64)
    except (TypeError, OverflowError, ValueError):
        matrices = np.zeros(0)
    if count is not None and matrices.ndim == 2:
        matrices = np.repeat(matrices[None], count, axis=0)
    shape_fits = matrices.ndim == 3 and matrices.shape[1:] == (side, side) and 2 <= len(matrices) <= MAX_CAMERAS
    if not shape_fits or not np.isfinite(matrices).all():
        raise ValueError(f"{name} is invalid. Provide 2 to {MAX_CAMERAS} finite {side} x {side} matrices.")
    return torch.from_numpy(matrices)


def _require_rigid(c2w: Tensor) -> Tensor:
    R = c2w[:, :3, :3]
    deviation = (R @ R.mT - torch.eye(3, dtype=R.dtype)).abs().amax((1, 2))
    deviation = torch.maximum(deviation, (c2w[:, 3] - c2w.new_tensor([0, 0, 0, 1])).abs().amax(1))
    invalid = (deviation > 1e-2) | (torch.linalg.det(R) < 0)
    if invalid.any():
        raise ValueError(f"c2w[{int(invalid.int().argmax())}] is not rigid. Remove scale, shear and mirroring.")
    return c2w


def _projection(tree: dict[str, Any], count: int, height: int, width: int, fov: float | None) -> Projection:
    if "K" not in tree:
        fov = tree.get("fov", fov)
        if not isinstance(fov, int | float) or not 0 < fov < 180:
            raise ValueError("K or fov is missing, or fov is not between 0 and 180 degrees. Set one of them.")
        return Projection.perspective(torch.full((count,), radians(fov)), height, width)
    K = _matrices(tree["K"], 3, "K", count)
    if len(K) != count or (K[:, [0, 1], [0, 1]] <= 0).any():
        raise ValueError(f"K is invalid. Provide 1 or {count} matrices with focal lengths above 0.")
    return Projection(K.float())


def _texts(tree: dict[str, Any], name: str, count: int) -> tuple[str, ...] | None:
    texts = tree.get(name)
    if texts is None:
        return None
    if not isinstance(texts, list) or len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} is not a list of {count} strings. Provide one string per camera.")
    return tuple(texts)
