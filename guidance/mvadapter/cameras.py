"""Cameras as MV-Adapter was trained with them.

Its world has z up as ours, but the front of an object faces -y where ours faces +x: it is ours turned by -90 degrees
around z. Azimuths, as its users give them, count from the front and counter-clockwise seen from above: they are ours.
Cameras are orthographic, 1.8 from the middle, and see 0.55 to each side; a mesh has 0.5 as its largest coordinate. Ours
may be in perspective, as no released adapter has them: then they see 0.55 to each side where a mesh may begin.
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
"""Of a camera from the middle; what it sees to each side; and the largest coordinate of a mesh."""
RAY_VIEWS = tuple((0.0, azimuth) for azimuth in (0.0, 45.0, 90.0, 180.0, 270.0, 315.0))
"""(elevation, azimuth) in degrees of the views that adapters on rays were trained for."""
GEOMETRY_VIEWS = (*((0.0, azimuth) for azimuth in (0.0, 90.0, 180.0, 270.0)), (89.99, 180.0), (-89.99, 180.0))
"""Of those on the geometry of a mesh: front, right, back, left, top, bottom."""
RAISED = (0.0, 30.0)
"""Elevations in degrees from which an adapter that knows any azimuth saw objects."""
NEAR = 3.0
"""Degrees from a trained view within which a view counts as one."""


def views(angles: Sequence[tuple[float, float]], height: int, width: int, fov: float = 0.0) -> Cameras:
    """Cameras of a mesh in our world, at (elevation, azimuth) in degrees, see ``towards_middle``."""
    elevation, azimuth = torch.tensor(angles, dtype=torch.float64).deg2rad().T
    return towards_middle(orbit_c2w(elevation, azimuth, torch.full_like(azimuth, DISTANCE)), height, width, fov)


def towards_middle(c2w: Tensor, height: int, width: int, fov: float = 0.0) -> Cameras:
    """Cameras that see all of a mesh from where poses (B,4,4) in our world are, which look at the origin; the larger
    side of the picture shows more of the world. fov: of a square picture, in degrees; 0: orthographic."""
    c2w, half = c2w.float(), HALF_HEIGHT * max(1.0, height / width)
    if not fov:
        return Cameras(c2w, Projection.orthographic(c2w.new_full((len(c2w),), half), height, width), height, width)
    before, c2w = HALF_HEIGHT / tan(radians(fov) / 2), c2w.clone()  # so far before the mesh
    c2w[:, :3, 3] = (HALF + before) * c2w[:, :3, 2]
    seen = c2w.new_full((len(c2w),), 2 * atan(half / before))
    return Cameras(c2w, Projection.perspective(seen, height, width), height, width)


def turned(vectors: Tensor) -> Tensor:
    """Points or directions (...,3) of our world in that of MV-Adapter: (x, y, z) becomes (y, -x, z)."""
    x, y, z = vectors.unbind(-1)
    return torch.stack([y, -x, z], dim=-1)


def ray_maps(at: Cameras) -> Tensor:
    """What an adapter is told of cameras in our world, in [0,1]: of orthographic ones maps (B,6,1,1) of how they look,
    which all pixels share; of those in perspective the lines of sight (B,6,H,W)."""
    maps = view_rays(at.c2w)[:, :, None, None] if at.projection.parallel else plucker_rays(at)
    parts = (turned(part.movedim(1, -1)).movedim(-1, 1) for part in maps.split(3, dim=1))
    return ray_control(torch.cat(list(parts), dim=1))


def geometry_maps(points: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """What an adapter is told of a mesh in our world: maps (B,6,H,W) in [0,1].

    Points and normals (B,H,W,3), the ``mask`` (B,H,W) of where they are; the mesh has 0.5 as its largest coordinate.
    """
    return geometry_control(turned(points), turned(normals), mask)


def untrained(c2w: Tensor, trained: Sequence[tuple[float, float]] = RAY_VIEWS, anywhere: bool = False) -> list[int]:
    """Lists those of the poses (B,4,4) in our world that look from where no trained view does.  anywhere: objects were
    seen from any azimuth at the elevations ``RAISED`` too."""
    elevation, azimuth = torch.tensor(trained, dtype=torch.float64).deg2rad().T
    known = unit_vector(elevation, azimuth)
    way = normalize(c2w[:, :3, 3].double().cpu(), dim=-1)
    there = (way @ known.T).amax(1) >= cos(radians(NEAR))
    if anywhere:
        raised = way[:, 2].asin().rad2deg()
        there |= (raised > RAISED[0] - NEAR) & (raised < RAISED[1] + NEAR)
    return (~there).nonzero().flatten().tolist()
