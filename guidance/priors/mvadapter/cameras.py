"""Cameras of MV-Adapter's training.

MV-Adapter's world has z up like ours, but the front of an object faces -y instead of +x: ours rotated by -90 degrees
around z. Azimuths count from the front, counter-clockwise seen from above, in both. Its cameras are orthographic, at
distance 1.8, with a half extent of 0.55; meshes fit into [-0.5, 0.5]. Our own adapters may have perspective cameras,
with the same half extent where the bounding cube begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import atan, cos, radians, tan

import torch
from torch import Tensor
from torch.nn.functional import normalize

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.control_maps import geometry_control, plucker_rays, ray_control, view_rays
from threedgen.geometry.poses import orbit_c2w, unit_vector

DISTANCE, HALF_HEIGHT, HALF = 1.8, 0.55, 0.5
"""Camera distance, half extent of the image in world units, and largest coordinate of a mesh."""
RAY_VIEWS = tuple((0.0, azimuth) for azimuth in (0.0, 45.0, 90.0, 180.0, 270.0, 315.0))
"""(elevation, azimuth) in degrees of the training views of adapters with ray control."""
GEOMETRY_VIEWS = (*((0.0, azimuth) for azimuth in (0.0, 90.0, 180.0, 270.0)), (89.99, 180.0), (-89.99, 180.0))
"""Training views with geometry control: front, right, back, left, top, bottom."""
RAISED = (0.0, 30.0)
"""Lowest and highest training elevation, in degrees, of adapters with `Form.anywhere`."""
TOLERANCE = 3.0
"""Largest angle in degrees between a view and the training view that it counts as."""


def views(angles: Sequence[tuple[float, float]], height: int, width: int, fov: float = 0.0) -> Cameras:
    """Return cameras of a mesh in our world at (elevation, azimuth) in degrees; `fov` as in `towards_middle`."""
    elevation, azimuth = torch.tensor(angles, dtype=torch.float64).deg2rad().T
    return towards_middle(orbit_c2w(elevation, azimuth, torch.full_like(azimuth, DISTANCE)), height, width, fov)


def towards_middle(c2w: Tensor, height: int, width: int, fov: float = 0.0) -> Cameras:
    """Return cameras in the directions of poses (B, 4, 4) that show all of a mesh at the origin of our world.

    Args:
        fov: field of view of a square image in degrees; 0: orthographic. The longer side shows more of the world.
    """
    c2w, half = c2w.float(), HALF_HEIGHT * max(1.0, height / width)
    if not fov:
        return Cameras(c2w, Projection.orthographic(c2w.new_full((len(c2w),), half), height, width), height, width)
    gap, c2w = HALF_HEIGHT / tan(radians(fov) / 2), c2w.clone()  # distance to the bounding cube
    c2w[:, :3, 3] = (HALF + gap) * c2w[:, :3, 2]
    vertical = c2w.new_full((len(c2w),), 2 * atan(half / gap))
    return Cameras(c2w, Projection.perspective(vertical, height, width), height, width)


def to_adapter_world(vectors: Tensor) -> Tensor:
    """Convert points or directions (..., 3) from our world to MV-Adapter's: (x, y, z) to (y, -x, z)."""
    x, y, z = vectors.unbind(-1)
    return torch.stack([y, -x, z], dim=-1)


def ray_maps(at: Cameras) -> Tensor:
    """Return the guider's input for cameras in our world, in [0, 1]: Pluecker rays (B, 6, H, W).

    Orthographic cameras have one direction for all pixels: (B, 6, 1, 1).
    """
    maps = view_rays(at.c2w)[:, :, None, None] if at.projection.parallel else plucker_rays(at)
    parts = (to_adapter_world(part.movedim(1, -1)).movedim(-1, 1) for part in maps.split(3, dim=1))
    return ray_control(torch.cat(list(parts), dim=1))


def geometry_maps(points: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """Return the guider's input for a mesh in our world: maps (B, 6, H, W) in [0, 1].

    Args:
        points, normals: (B, H, W, 3); the mesh fits into [-0.5, 0.5].
        mask: (B, H, W), of the mesh.
    """
    return geometry_control(to_adapter_world(points), to_adapter_world(normals), mask)


def untrained(c2w: Tensor, trained: Sequence[tuple[float, float]] = RAY_VIEWS, anywhere: bool = False) -> list[int]:
    """Return the indices of poses (B, 4, 4) in our world outside the training range of an adapter.

    Args:
        trained: (elevation, azimuth) of the training views in degrees.
        anywhere: any azimuth at the elevations `RAISED` was a training view, too.
    """
    elevation, azimuth = torch.tensor(trained, dtype=torch.float64).deg2rad().T
    known = unit_vector(elevation, azimuth)
    direction = normalize(c2w[:, :3, 3].double().cpu(), dim=-1)
    inside = (direction @ known.T).amax(1) >= cos(radians(TOLERANCE))
    if anywhere:
        degrees = direction[:, 2].asin().rad2deg()
        inside |= (degrees > RAISED[0] - TOLERANCE) & (degrees < RAISED[1] + TOLERANCE)
    return (~inside).nonzero().flatten().tolist()
