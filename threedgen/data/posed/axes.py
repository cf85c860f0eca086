"""Convention of camera poses: conversion, the point that the cameras look at, and other conventions to compare with.

Imports no torch.
"""

from typing import NamedTuple, get_args

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.run.arrays import Array

from .options import PoseConvention

FLIP = np.diag([1.0, -1, -1, 1])  # OpenGL camera axes <-> OpenCV camera axes
SWAP = np.eye(4)[[0, 2, 1, 3]]  # y <-> z
MIN_CONDITION = 1e-3
"""Minimum eigenvalue of the mean projector of the view axes; below it they are parallel and have no common point."""
ROTATION_TOLERANCE = 1e-2


class Focus(NamedTuple):
    """Point (3,) that is nearest to the viewing axes of N cameras, and how well the cameras look at it.

    `agreement` is the median cosine between viewing axis and direction to the point. It is 0 if there is no such point,
    because the axes are parallel or all cameras are at one position.
    """

    point: Array
    agreement: float


def to_c2w(matrices: Array, convention: PoseConvention) -> Array:
    """Convert pose matrices (N, 4, 4) from `convention` to camera-to-world poses (N, 4, 4) with OpenGL axes."""
    c2w: Array = np.linalg.inv(matrices) if convention.startswith("w2c") else matrices
    return c2w @ FLIP if convention.endswith("opencv") else c2w


def alternatives(matrices: Array) -> dict[str, Array]:
    """Interpret pose matrices (N, 4, 4) in each convention, also with y and z swapped. Return camera-to-world poses
    (N, 4, 4), OpenGL axes, by name of the convention. Conventions that would mirror the scene are left out."""
    swapped = {
        "": matrices,
        " with y and z of the world swapped": SWAP @ matrices,
        " with y and z of the camera swapped": matrices @ SWAP,
        " with y and z of the positions swapped": np.concatenate(
            [matrices[..., :3], (SWAP @ matrices)[..., 3:]], axis=-1
        ),
    }
    found = {
        name + change: to_c2w(poses, name) for change, poses in swapped.items() for name in get_args(PoseConvention)
    }
    return {name: c2w for name, c2w in found.items() if (np.linalg.det(c2w[:, :3, :3]) > 0).all()}


def without_scale(matrices: Array, source: str) -> Array:
    """Divide out a common scale of the axes of pose matrices (N, 4, 4). Mirrored matrices, whose determinant is
    negative, are accepted. `source` names the file for the ConfigError, which is raised if a matrix is not rigid."""
    scale = np.cbrt(np.abs(np.linalg.det(matrices[:, :3, :3])))
    unit = matrices.copy()
    unit[:, :3, :3] /= np.maximum(scale, 1e-12)[:, None, None]
    R = unit[:, :3, :3]
    bad = np.abs(R.transpose(0, 2, 1) @ R - np.eye(3)).max((1, 2)) > ROTATION_TOLERANCE
    bad |= np.abs(matrices[:, 3] - [0, 0, 0, 1]).max(1) > 1e-6
    if bad.any():
        raise ConfigError(f"{source}: pose {int(bad.argmax())} is not a rotation and a translation. Remove its shear")
    return unit


def focus(c2w: Array) -> Focus:
    """Find the point that cameras with the camera-to-world poses `c2w` (N, 4, 4), OpenGL axes, look at."""
    position, axis = c2w[:, :3, 3], -c2w[:, :3, 2]
    projector = np.eye(3) - axis[:, :, None] * axis[:, None]
    point = np.linalg.lstsq(projector.sum(0), np.einsum("nij,nj->i", projector, position), rcond=1e-6)[0]
    offset = point - position
    distance = np.linalg.norm(offset, axis=1)
    cosine = (offset * axis).sum(1) / np.maximum(distance, 1e-12)
    spread = np.linalg.norm(position - position.mean(0), axis=1).max()
    apart = spread > 1e-3 * np.linalg.norm(position, axis=1).max()
    defined = apart and np.linalg.eigvalsh(projector.mean(0))[0] > MIN_CONDITION
    return Focus(point, float(np.median(cosine)) if defined else 0.0)
