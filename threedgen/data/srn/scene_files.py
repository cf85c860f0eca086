"""Everything of a scene but its pixels, read and checked (no torch here). Which files these are, see ``layout.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.geometry.picture_file import picture_shape
from threedgen.run.arrays import Array

from .intrinsics import read_intrinsics, read_numbers
from .layout import pictures

CONDITION_VIEW = 64
"""The standard protocol: this view (by the number of its file) is given, the other 250 are predicted."""
RIGID, TOGETHER = 1e-3, 1e-4
"""Tolerances: of R^T R against the identity; of the spread of cameras against their distance to the origin."""


@dataclass(frozen=True)
class SceneFiles:
    """One scene on the disk: its pictures ``files`` (N,), of ``height`` x ``width`` pixels, intrinsics ``K`` (N, 3, 3),
    and ``poses`` (N, 4, 4), camera-to-world with OpenCV axes."""

    folder: Path
    files: tuple[Path, ...]
    K: Array
    poses: Array
    height: int
    width: int

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


def read_scene(folder: Path | str, least: int = 2, gaps: bool = False) -> SceneFiles:
    """Reads the headers of a scene's pictures, its poses and its intrinsics.

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
    return SceneFiles(folder, tuple(files), K, poses, height, width)


def condition_and_targets(scene: SceneFiles, condition: int = CONDITION_VIEW) -> tuple[int, list[int]]:
    """Places of the given view and of those to predict, by the number in the files' names. Raises ConfigError, of the
    key ``condition``."""
    numbers = scene.numbers
    if condition not in numbers:
        there = f"the numbers there are from {min(numbers)} to {max(numbers)}"
        raise ConfigError(f"{scene.folder / 'rgb'} has no view of this number; {there}", "condition", condition)
    given = numbers.index(condition)
    return given, [k for k in range(len(scene)) if k != given]


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
        raise ConfigError(
            f"{folder / 'pose'}: the cameras are all in one place, so nothing can be seen in depth; are the poses "
            "world-to-camera? Then invert them, or say so by a 1 in a fifth line of intrinsics.txt"
        )
