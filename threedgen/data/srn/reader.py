"""Reads the archives of Scene Representation Networks (Sitzmann et al. 2019) and whatever has their layout.

Which files these are, see ``layout.py``. Poses become those of ``threedgen.geometry.cameras`` (OpenGL axes). The
archives' world has z up, which is how it is taken here too; ``up="y"`` turns a world whose y points up.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.picture_file import picture_shape, read_picture
from threedgen.geometry.poses import opencv_axes, opengl_to_blender
from threedgen.geometry.views import Views
from threedgen.run.arrays import Array

from .intrinsics import read_intrinsics, read_numbers
from .layout import pictures

logger = logging.getLogger(__name__)

CONDITION_VIEW = 64
"""The standard protocol: this view (by the number of its file) is given, the other 250 are predicted."""
RIGID, TOGETHER = 1e-3, 1e-4
"""Tolerances: of R^T R against the identity; of the spread of cameras against their distance to the origin."""


@dataclass(frozen=True)
class Instance:
    """One scene on the disk. ``names`` (N,) are those of its files, ``at`` its cameras in native resolution."""

    folder: Path
    files: tuple[Path, ...]
    at: Cameras

    def __len__(self) -> int:
        return len(self.files)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def names(self) -> tuple[str, ...]:
        """Of the views, as their files have them."""
        return tuple(file.stem for file in self.files)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the views: those in the names of the files, or else their places in the order of the names."""
        if all(name.isdecimal() for name in self.names):
            return tuple(int(name) for name in self.names)
        return tuple(range(len(self)))

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


def condition_and_targets(instance: Instance, condition: int = CONDITION_VIEW) -> tuple[int, list[int]]:
    """Places of the given view and of those to predict, by the number in the files' names. Raises ConfigError."""
    if condition not in instance.numbers:
        raise ConfigError(f"{instance.folder / 'rgb'} has no view number {condition}, which is to be the given one")
    given = instance.numbers.index(condition)
    return given, [k for k in range(len(instance)) if k != given]


def open_instance(folder: Path | str, up: Literal["z", "y"] = "z", least: int = 2, gaps: bool = False) -> Instance:
    """A scene with everything but its pixels read and checked.

    ``least``: so many views it must have; ``gaps``: whether numbers of views may be missing in between. Raises
    ConfigError, one sentence that names the file, for pictures without a pose and poses without a picture, numbers
    that are missing, pictures of several sizes, intrinsics of another size, poses that are not rigid, cameras that
    are all in one place.
    """
    folder = Path(folder)
    files = pictures(folder, least)
    if not gaps:
        _no_gaps(folder, [file.stem for file in files])
    height, width = _one_size(files)
    names = [file.stem for file in files]
    K, inverse = read_intrinsics(folder, names, height, width)
    poses = np.stack([read_pose(folder / "pose" / f"{name}.txt") for name in names])
    poses = np.linalg.inv(poses) if inverse else poses
    _apart(folder, poses)
    c2w = opencv_axes(torch.from_numpy(poses).double())
    c2w = opengl_to_blender(c2w) if up == "y" else c2w
    return Instance(folder, tuple(files), Cameras(c2w.float(), Projection(torch.from_numpy(K).float()), height, width))


def read_pose(path: Path) -> Array:
    """A rigid motion (4, 4) as the file has it. Raises ConfigError naming the file."""
    numbers = [x for row in read_numbers(path) for x in row]
    if len(numbers) != 16:
        raise ConfigError(f"{path} should hold the 16 numbers of a pose (got {len(numbers)})")
    pose = np.array(numbers).reshape(4, 4)
    R = pose[:3, :3]
    if not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6):
        raise ConfigError(f"{path} is not rigid: its last row should be 0 0 0 1 (got {pose[3].tolist()})")
    if np.abs(R.T @ R - np.eye(3)).max() > RIGID or np.linalg.det(R) < 0:
        raise ConfigError(
            f"{path} is not rigid: its first three columns should be a rotation (lengths "
            f"{', '.join(f'{x:.4g}' for x in np.linalg.norm(R, axis=0))}, determinant {np.linalg.det(R):.4g})"
        )
    return pose


def _no_gaps(folder: Path, names: list[str]) -> None:
    numbers = [int(name) for name in names if name.isdecimal()]
    lacking = set(range(min(numbers, default=0), max(numbers, default=0))) - set(numbers)
    if len(numbers) == len(names) and lacking:
        lost = folder / "rgb" / f"{min(lacking):0{len(names[0])}d}.png"
        raise ConfigError(f"{lost} is missing, and its pose: the views should be numbered without gaps")


def _one_size(files: Sequence[Path]) -> tuple[int, int]:
    """Height and width of all pictures, read from the beginnings of the files."""
    sizes = []
    for path in files:
        sizes.append(picture_shape(path))
        (height, width), (first, other) = sizes[-1], sizes[0]
        if (height, width) != (first, other):
            has = f"{path} has {height} x {width} pixels (height x width)"
            raise ConfigError(f"{has}, but {files[0].name} has {first} x {other}")
    return sizes[0]


def _apart(folder: Path, poses: Array) -> None:
    centres = poses[:, :3, 3]
    spread = np.linalg.norm(centres - centres.mean(0), axis=1).max()
    if len(poses) > 1 and spread <= TOGETHER * max(1e-9, np.linalg.norm(centres, axis=1).max()):
        raise ConfigError(f"{folder / 'pose'}: the cameras are all in one place, so nothing can be seen in depth")


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
