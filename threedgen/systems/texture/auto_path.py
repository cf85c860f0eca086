"""Automatic camera path for a scene: a small circle in the middle of the largest free space inside the mesh."""

from math import pi, radians

import numpy as np
import torch
from scipy import ndimage

from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import look_at, unit_vector
from threedgen.run.arrays import Array
from threedgen.systems.draw.mesh import SourceMesh

from .options import PathConfig

GRID, POINTS = 64, 400_000
"""Voxels along the longest side of the scene, and number of random surface points that fill the voxel grid."""
EYE_HEIGHT = (0.35, 0.65)
"""Range of camera heights as a fraction of the room height: 0 is the floor, 1 the ceiling."""
RADIUS, MAX_RADIUS = 0.35, 0.8
"""Radius of the circle as a fraction of the free distance around its centre, and its maximum in metres."""
TURNS, TILT = 2.0, 15.0
"""Number of turns around the circle, and camera pitch in degrees: down at the start of the path, up at its end."""


def auto_path(source: SourceMesh, rig: PathConfig) -> Cameras:
    """Return `rig.frames` perspective cameras on a small circle; each looks across the centre of the circle.

    Raises ConfigError if the mesh has no free interior.
    """
    centre, free = interior(source)
    n = torch.arange(rig.frames, dtype=torch.float32)
    azimuth = 2 * pi * TURNS * n / rig.frames
    tilt = radians(TILT) * (2 * n / max(1, rig.frames - 1) - 1)
    backwards = -unit_vector(torch.zeros_like(n), azimuth)
    position = torch.from_numpy(centre).float() + min(RADIUS * free, MAX_RADIUS) * backwards
    c2w = look_at(position, position + unit_vector(tilt, azimuth), torch.tensor([[0.0, 0, 1]]).expand(len(n), 3))
    projection = Projection.perspective(torch.full((len(n),), radians(rig.fov)), rig.height, rig.width)
    return Cameras(c2w, projection, rig.height, rig.width)


def interior(source: SourceMesh) -> tuple[Array, float]:
    """Find the point inside the mesh, at eye height, that is farthest from any surface.

    A voxel is inside if it is empty and there is a surface below it and in each of the four horizontal directions. If
    no inside voxel at eye height has two voxels of free space, other heights are used.

    Returns:
        World coordinates (3,) of the point, and its distance to the nearest surface in metres.

    Raises:
        ConfigError: no inside voxel has enough free space.
    """
    points = surface_points(source)
    low, high = source.vertices.min(0), source.vertices.max(0)
    cell = float((high - low).max()) / GRID
    shape = np.maximum(np.ceil((high - low) / cell).astype(int), 1) + 2  # one layer of air all around
    full = np.zeros(shape, bool)
    full[tuple((((points - low) / cell).astype(int) + 1).clip(0, shape - 1).T)] = True
    levels = np.arange(shape[2])
    floor = np.maximum.accumulate(np.where(full, levels, -1), 2)  # below each cell, -1: none
    ceiling = np.flip(np.minimum.accumulate(np.flip(np.where(full, levels, shape[2]), 2), 2), 2)
    sides = [np.maximum.accumulate(full, axis) for axis in (0, 1)]
    sides += [np.flip(np.maximum.accumulate(np.flip(full, axis), axis), axis) for axis in (0, 1)]
    inside = ~full & (floor >= 0) & np.logical_and.reduce(sides)
    height = np.where(ceiling < shape[2], (levels - floor) / np.maximum(ceiling - floor, 1), 0.5)
    free = ndimage.distance_transform_edt(~full) * inside
    at_eyes = np.where((height >= EYE_HEIGHT[0]) & (height <= EYE_HEIGHT[1]), free, 0)
    chosen = at_eyes if at_eyes.max() >= 2 else free
    if chosen.max() < 2:
        raise ConfigError("the mesh has no free interior for a camera. Give rig.file=FILE.json", "rig.file")
    best = np.argwhere(chosen >= 0.999 * chosen.max())
    place = best[np.abs(best - best.mean(0)).sum(1).argmin()]
    return low + (place - 0.5) * cell, float(chosen.max() * cell)


def surface_points(source: SourceMesh) -> Array:
    """Sample `POINTS` points uniformly on the surface, always the same ones; return them and all vertices, (P, 3)."""
    corners = source.vertices[source.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    rng = np.random.default_rng(0)
    face = rng.choice(len(area), POINTS, p=area / area.sum())
    u, v = rng.random((2, POINTS))
    u, v = np.where(u + v > 1, 1 - u, u)[:, None], np.where(u + v > 1, 1 - v, v)[:, None]
    a, b, c = corners[face].swapaxes(0, 1)
    return np.concatenate([a + u * (b - a) + v * (c - a), source.vertices])
