"""Camera paths: that of a file, and one that looks around from the middle of a scene."""

from __future__ import annotations

from dataclasses import replace
from math import pi, radians
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.cameras_file import read_cameras
from threedgen.geometry.poses import look_at, unit_vector
from threedgen.run.arrays import Array

from .options import TextureConfig
from .scene import Coordinates, SceneMesh

GRID, POINTS = 64, 400_000
"""Cells along the longest side of a scene, and points of its surface, by which its free interior is found."""
EYES = (0.35, 0.65)
"""Where eyes are, as shares of the way from the floor to the ceiling."""
STROLL, FARTHEST_STEP = 0.35, 0.8
"""How far an automatic path goes from its middle: this share of the free room around it, and metres at most."""


def read_path(config: TextureConfig, place: Coordinates) -> Cameras:
    """The cameras of a file (``geometry.cameras_file``) whose matrices are in the coordinates of the mesh's, in our
    world, for frames of the config's size. Raises ConfigError."""
    size = (config.height, config.width)
    found = read_cameras(Path(config.path).expanduser(), "path", config.poses, size, config.fov).cameras
    return fitted(replace(found, c2w=place.poses(found.c2w)), *size)


def fitted(at: Cameras, height: int, width: int) -> Cameras:
    """The same cameras with other pictures: scaled by their heights, cut or widened at the sides."""
    K = at.K.clone()
    K[:, 0, 2] -= at.width / 2
    K[:, :2] *= height / at.height
    K[:, 0, 2] += width / 2
    return Cameras(at.c2w, Projection(K), height, width)


def around(scene: SceneMesh, config: TextureConfig) -> Cameras:
    """From the middle of the free interior all around, walking a small circle; first downwards, then upwards."""
    middle, free = interior(scene)
    n = torch.arange(config.frames, dtype=torch.float32)
    azimuth = 2 * pi * config.turns * n / config.frames
    tilt = radians(config.tilt) * (2 * n / max(1, config.frames - 1) - 1)
    reach = min(STROLL * free, FARTHEST_STEP)
    backwards = -unit_vector(torch.zeros_like(n), azimuth)
    position = torch.from_numpy(middle).float() + reach * backwards  # each looks across the middle
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
    levels = np.arange(shape[2])
    floor = np.maximum.accumulate(np.where(full, levels, -1), 2)  # of each cell, -1 if there is none
    ceiling = np.flip(np.minimum.accumulate(np.flip(np.where(full, levels, shape[2]), 2), 2), 2)
    sides = [np.maximum.accumulate(full, axis) for axis in (0, 1)]
    sides += [np.flip(np.maximum.accumulate(np.flip(full, axis), axis), axis) for axis in (0, 1)]
    within = ~full & (floor >= 0) & np.logical_and.reduce(sides)
    height = np.where(ceiling < shape[2], (levels - floor) / np.maximum(ceiling - floor, 1), 0.5)
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
