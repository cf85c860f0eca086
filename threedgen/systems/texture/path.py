"""Camera paths: a JSON file with matrices, read and written, and one that looks around from the middle of a scene.

    {"axes": "opengl", "c2w": [[[...], ...], ...], "fov": 60}          or "K": [[fx, 0, cx], ...] with height and width

Matrices are in the coordinates of the mesh's file. fov is vertical, in degrees. K is in pixels, counted from the
picture's upper left corner, so that its middle is at (width / 2, height / 2).
"""

from __future__ import annotations

from math import pi, radians
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.plain_file import parse_json
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import look_at, opencv_axes, unit_vector, world_to_camera
from threedgen.run.arrays import Array
from threedgen.run.folder import write_json

from .options import TextureConfig, text_of
from .scene import Coordinates, SceneMesh

MOST = 100_000
"""Cameras of a path."""
GRID, POINTS = 64, 400_000
"""Cells along the longest side of a scene, and points of its surface, by which its free interior is found."""
EYES = (0.35, 0.65)
"""Where eyes are, as shares of the way from the floor to the ceiling."""
STROLL, FARTHEST_STEP = 0.35, 0.8
"""How far an automatic path goes from its middle: this share of the free room around it, and metres at most."""


def read_path(config: TextureConfig, place: Coordinates) -> Cameras:
    """The cameras of a file, in our world. Raises ConfigError."""
    try:
        tree = parse_json(text_of(config.path, "path"))
    except ValueError as error:
        raise ConfigError(f"{config.path!r} is no JSON: {error}", "path") from None
    if not isinstance(tree, dict) or "c2w" not in tree:
        raise ConfigError(f"{config.path!r} should be an object with c2w, a list of 4 x 4 matrices", "path")
    axes = tree.get("axes")
    if axes not in ("opengl", "opencv"):
        raise ConfigError(
            f"{config.path!r} should say its axes, opengl (y up, looking along -z) or opencv (y down, along z)", "path"
        )
    c2w = rigid(_numbers(tree["c2w"], (4, 4), "c2w", config.path), config.path)
    if config.poses == "w2c":
        c2w = world_to_camera(c2w)
    c2w = place.poses(opencv_axes(c2w) if axes == "opencv" else c2w)
    return Cameras(c2w.float(), _projection(tree, len(c2w), config), config.height, config.width)


def _numbers(value: Any, shape: tuple[int, int], name: str, file: str) -> Tensor:
    """A list of matrices (N,*shape), float64. Raises ConfigError."""
    try:
        found = np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        found = np.zeros(0)
    if found.ndim != 3 or found.shape[1:] != shape or not np.isfinite(found).all() or not 2 <= len(found) <= MOST:
        rows, columns = shape
        raise ConfigError(f"{name} of {file!r} should be a list of 2 or more matrices {rows} x {columns}", "path")
    return torch.from_numpy(found)


def rigid(poses: Tensor, name: str, key: str = "path") -> Tensor:
    """Poses (N,4,4) that turn and move only. Raises ConfigError, with the number of one that does more."""
    R = poses[:, :3, :3]
    off = (R @ R.mT - torch.eye(3, dtype=R.dtype)).abs().amax((1, 2))
    off = torch.maximum(off, (poses[:, 3] - poses.new_tensor([0, 0, 0, 1])).abs().amax(1))
    wrong = (off > 1e-2) | (torch.linalg.det(R) < 0)
    if wrong.any():
        which = int(wrong.int().argmax())
        raise ConfigError(f"matrix {which} of {name!r} is no pose: it should turn and move, not stretch or mirror", key)
    return poses


def _projection(tree: dict[str, Any], count: int, config: TextureConfig) -> Projection:
    """Of frames of the config's size: those of the file are scaled by their heights, about the middle."""
    if "K" not in tree:
        fov = tree.get("fov", config.fov)
        if not isinstance(fov, int | float) or not 0 < fov < 180:
            raise ConfigError(f"fov of {config.path!r} should be an angle between 0 and 180 degrees", "path")
        return Projection.perspective(torch.full((count,), radians(fov)), config.height, config.width)
    height, width = tree.get("height"), tree.get("width")
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ConfigError(f"{config.path!r} has K, so it should say height and width of its pictures", "path")
    value = tree["K"]
    flat = isinstance(value, list) and bool(value) and isinstance(value[0], list) and not isinstance(value[0][0], list)
    K = _numbers([value] * count if flat else value, (3, 3), "K", config.path)
    if len(K) != count or (K[:, [0, 1], [0, 1]] <= 0).any():
        raise ConfigError(f"K of {config.path!r} should be one matrix, or {count}, of focal lengths above 0", "path")
    return Projection(fitted(K, (height, width), (config.height, config.width)).float())


def fitted(K: Tensor, size: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Intrinsics (N,3,3) of pictures of ``size`` for others: scaled by their heights, cut or widened at the sides."""
    K = K.clone()
    K[:, 0, 2] -= size[1] / 2
    K[:, :2] *= to[0] / size[0]
    K[:, 0, 2] += to[1] / 2
    return K


def write_path(file: Path, at: Cameras, place: Coordinates, **more: Any) -> None:
    """Writes cameras so that ``read_path`` reads them. Raises OSError."""
    tree = {
        "axes": "opengl",
        "height": at.height,
        "width": at.width,
        "K": at.K.double().tolist(),
        "c2w": place.poses_back(at.c2w.double()).tolist(),
    }
    write_json(file, tree | more)


# --- an automatic path -------------------------------------------------------------------------------------------


def around(scene: SceneMesh, config: TextureConfig) -> Cameras:
    """From the middle of the free interior all around, walking a small circle; first downwards, then upwards."""
    middle, free = interior(scene)
    n = torch.arange(config.frames, dtype=torch.float32)
    azimuth = 2 * pi * config.turns * n / config.frames
    tilt = radians(config.tilt) * (2 * n / max(1, config.frames - 1) - 1)
    reach = min(STROLL * free, FARTHEST_STEP)
    position = torch.from_numpy(middle).float() - reach * unit_vector(
        torch.zeros_like(n), azimuth
    )  # backs to the middle
    c2w = look_at(position, position + unit_vector(tilt, azimuth), torch.tensor([[0.0, 0, 1]]).expand(len(n), 3))
    projection = Projection.perspective(torch.full((len(n),), radians(config.fov)), config.height, config.width)
    return Cameras(c2w, projection, config.height, config.width)


def interior(scene: SceneMesh) -> tuple[Array, float]:
    """The place (3,) inside a scene that has the most free room around it, at the height of eyes, and how much, metres.

    Inside is what has something to all four sides and below. Raises ConfigError if there is no such place.
    """
    points = surface_points(scene)
    low, high = scene.vertices.min(0), scene.vertices.max(0)
    cell = float((high - low).max()) / GRID
    shape = np.maximum(np.ceil((high - low) / cell).astype(int), 1) + 2  # a layer of air all around
    full = np.zeros(shape, bool)
    full[tuple((((points - low) / cell).astype(int) + 1).clip(0, shape - 1).T)] = True
    before, after = (
        [np.flip(np.maximum.accumulate(np.flip(full, axis), axis), axis) if back else np.maximum.accumulate(full, axis)]
        for axis, back in ((2, False), (2, True))
    )
    sides = [np.maximum.accumulate(full, axis) for axis in (0, 1)]
    sides += [np.flip(np.maximum.accumulate(np.flip(full, axis), axis), axis) for axis in (0, 1)]
    within = ~full & before[0] & np.logical_and.reduce(sides)
    levels = np.arange(shape[2])
    floor = np.maximum.accumulate(np.where(full, levels, -1), 2)
    above = np.flip(np.minimum.accumulate(np.flip(np.where(full, levels, shape[2]), 2), 2), 2)
    height = np.where(after[0], (levels - floor) / np.maximum(above - floor, 1), 0.5)
    free = ndimage.distance_transform_edt(~full) * within
    at_eyes = np.where((height >= EYES[0]) & (height <= EYES[1]), free, 0)
    chosen = at_eyes if at_eyes.max() >= 2 else free
    if chosen.max() < 2:
        raise ConfigError("the mesh has no free interior in which a camera could stand; give path=FILE.json", "path")
    best = np.argwhere(chosen >= 0.999 * chosen.max())
    place = best[np.abs(best - best.mean(0)).sum(1).argmin()]
    return low + (place - 0.5) * cell, float(chosen.max() * cell)


def surface_points(scene: SceneMesh) -> Array:
    """Points (P,3) all over the triangles, evenly by area, and all corners."""
    corners = scene.vertices[scene.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    rng = np.random.default_rng(0)
    face = rng.choice(len(area), POINTS, p=area / area.sum())
    u, v = rng.random((2, POINTS))
    u, v = np.where(u + v > 1, 1 - u, u)[:, None], np.where(u + v > 1, 1 - v, v)[:, None]
    a, b, c = corners[face].swapaxes(0, 1)
    return np.concatenate([a + u * (b - a) + v * (c - a), scene.vertices])
