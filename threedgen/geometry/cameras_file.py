"""JSON file of cameras, written and read by tasks:

    {"axes": "opengl", "height": 192, "width": 256, "c2w": [[[...], ...], ...], "K": [[[fx, 0, cx], ...], ...],
     "files": ["frames/0000.png", ...], "prompts": ["a kitchen", ...]}

c2w: camera-to-world matrices (N, 4, 4). axes: opengl (y up, the camera looks along -z) or opencv (y down, the camera
looks along z). K: intrinsics in pixels, (3, 3) or (N, 3, 3); the image centre is (width / 2, height / 2). Instead of K,
the file may have fov, the vertical field of view in degrees. Optional: files, image paths relative to this file;
prompts, image captions.
"""

from math import radians
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import parse_json, read_text
from threedgen.run.disk import write_json

from .cameras import Cameras, Projection
from .poses import Poses, opencv_axes, world_to_camera

CAMERAS_FILE = "cameras.json"
MAX_CAMERAS = 100_000


class CamerasFile(NamedTuple):
    """Content of a cameras file: N cameras, N image paths relative to the file, N prompts (captions).

    A list that is not in the file is None.
    """

    cameras: Cameras
    files: tuple[str, ...] | None = None
    prompts: tuple[str, ...] | None = None


class _Content(BaseModel):
    c2w: Any
    axes: Literal["opengl", "opencv"]
    K: Any = None
    fov: float | None = Field(None, gt=0, lt=180)
    height: int | None = Field(None, gt=0, strict=True)
    width: int | None = Field(None, gt=0, strict=True)
    files: tuple[str, ...] | None = Field(None, fail_fast=True)
    prompts: tuple[str, ...] | None = Field(None, fail_fast=True)


def write_cameras(path: Path, cameras: Cameras, files: list[str], prompts: list[str]) -> None:
    """Write N cameras with N image paths, relative to the file at `path`, and N prompts (captions) to a JSON file.

    The file has the keys axes ("opengl"), height, width, K (intrinsics), c2w (camera-to-world poses), files, prompts.

    Raises OSError if the file cannot be written, and ValueError if the cameras are orthographic.
    """
    header = {"axes": "opengl", "height": cameras.height, "width": cameras.width}
    matrices = {"K": cameras.K.double().tolist(), "c2w": cameras.c2w.double().tolist()}
    write_json(path, header | matrices | {"files": files, "prompts": prompts})


def read_cameras(
    path: Path, key: str, poses: Poses = "c2w", size: tuple[int, int] | None = None, fov: float | None = None
) -> CamerasFile:
    """Read a JSON file of two or more cameras, such as one that `write_cameras` wrote.

    The file has the keys c2w (N camera poses, 4 x 4 each), axes ("opengl" or "opencv"), height and width in pixels, and
    K (one or N intrinsics, 3 x 3, in pixels) or fov (vertical field of view in degrees). The keys files (image paths)
    and prompts are optional. Returns the N cameras, with OpenGL axes, the N image paths and the N prompts; None for
    paths or prompts that the file does not have.

    Raises ConfigError with the config key `key` if the file is invalid.

    Args:
        poses: kind of the matrices under the file's key c2w, camera-to-world ("c2w") or world-to-camera ("w2c").
        size: (height, width) in pixels, used only if the file has none of the keys height, width and K. Otherwise, and
            if `size` is None, the file must have height and width.
        fov: vertical field of view in degrees, used only if the file has neither K nor fov. None: the file must have
            one of them.
    """
    text = read_text(path, key)
    try:
        return _convert(_Content.model_validate(parse_json(text)), poses, size, fov)
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        problem = str(error)
    raise ConfigError(f"{path} is not a cameras file: {problem}", key)


def _convert(file: _Content, poses: Poses, size: tuple[int, int] | None, fov: float | None) -> CamerasFile:
    c2w = _matrices(file.c2w, 4, "c2w")
    _require_rigid(c2w)
    c2w = world_to_camera(c2w) if poses == "w2c" else c2w
    c2w = opencv_axes(c2w) if file.axes == "opencv" else c2w
    height, width = file.height, file.width
    if size is not None and height is None is width and file.K is None:
        height, width = size
    if height is None or width is None:
        raise ValueError("height or width is missing. Set both to the image size in pixels.")
    if file.K is not None:
        K = _matrices(file.K, 3, "K", len(c2w))
        if len(K) != len(c2w) or (K[:, [0, 1], [0, 1]] <= 0).any():
            raise ValueError(f"K is invalid. Provide 1 or {len(c2w)} matrices with focal lengths above 0.")
        projection = Projection(K.float())
    else:
        fov = fov if file.fov is None else file.fov
        if fov is None:
            raise ValueError("K or fov is missing. Set one of them.")
        projection = Projection.perspective(torch.full((len(c2w),), radians(fov)), height, width)
    for name, texts in (("files", file.files), ("prompts", file.prompts)):
        if texts is not None and len(texts) != len(c2w):
            raise ValueError(f"{name} is not a list of {len(c2w)} strings. Provide one string per camera.")
    return CamerasFile(Cameras(c2w.float(), projection, height, width), file.files, file.prompts)


def _matrices(value: Any, side: int, name: str, count: int | None = None) -> Tensor:
    # JSON to (N, side, side) float64. With `count`, a single matrix (side, side) is repeated.
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


def _require_rigid(c2w: Tensor) -> None:
    R = c2w[:, :3, :3]
    deviation = (R @ R.mT - torch.eye(3, dtype=R.dtype)).abs().amax((1, 2))
    deviation = torch.maximum(deviation, (c2w[:, 3] - c2w.new_tensor([0, 0, 0, 1])).abs().amax(1))
    invalid = (deviation > 1e-2) | (torch.linalg.det(R) < 0)
    if invalid.any():
        raise ValueError(f"c2w[{int(invalid.int().argmax())}] is not rigid. Remove scale, shear and mirroring.")
