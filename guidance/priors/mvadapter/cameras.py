"""Cameras and camera inputs of MV-Adapter, in the coordinates of its training.

In our world z is up and the front of an object faces +x. In MV-Adapter's world z is up and the front faces -y: it is
our world rotated by -90 degrees around z. In both, azimuth 0 is the front and azimuth increases counter-clockwise seen
from above. The released adapters have orthographic cameras at distance 1.8 that show 0.55 units on each side of the
centre; meshes fit into the cube [-0.5, 0.5]^3. Our own adapters may have perspective cameras, which show the same
extent at the front plane of that cube.
"""

from collections.abc import Sequence
from math import atan, cos, radians, tan

import torch
from torch import Tensor
from torch.nn.functional import normalize

from threedgen.geometry.cameras import Cameras, Projection, geometry_control, plucker_rays, ray_control, view_rays
from threedgen.geometry.poses import orbit_c2w, unit_vector

DISTANCE, HALF_HEIGHT, HALF = 1.8, 0.55, 0.5
"""Camera distance, half of the image side, and largest coordinate of a mesh, all in world units."""
RAY_VIEWS = tuple((0.0, azimuth) for azimuth in (0.0, 45.0, 90.0, 180.0, 270.0, 315.0))
"""(elevation, azimuth) in degrees of the training views of adapters that take camera rays."""
GEOMETRY_VIEWS = (*((0.0, azimuth) for azimuth in (0.0, 90.0, 180.0, 270.0)), (89.99, 180.0), (-89.99, 180.0))
"""(elevation, azimuth) in degrees for adapters that take mesh geometry: front, right, back, left, top, bottom."""
RAISED = (0.0, 30.0)
"""Lowest and highest elevation in degrees of the additional training views of adapters with `Form.anywhere` > 0."""
TOLERANCE = 3.0
"""Largest angle in degrees between a camera and a training view at which the camera counts as trained."""


def views(angles: Sequence[tuple[float, float]], height: int, width: int, fov: float = 0.0) -> Cameras:
    """Return B cameras around a mesh at the origin of our world.

    Args:
        angles: B pairs (elevation, azimuth) in degrees.
        height, width: image size in pixels.
        fov: field of view of a square image in degrees; 0: orthographic.
    """
    elevation, azimuth = torch.tensor(angles, dtype=torch.float64).deg2rad().T
    return towards_middle(orbit_c2w(elevation, azimuth, torch.full_like(azimuth, DISTANCE)), height, width, fov)


def towards_middle(c2w: Tensor, height: int, width: int, fov: float = 0.0) -> Cameras:
    """Return cameras with the viewing directions of given poses that show a whole mesh at the origin of our world.

    Args:
        c2w: camera-to-world poses (B, 4, 4), OpenGL axes. Perspective cameras are moved to the distance for `fov`.
        height, width: image size in pixels; along the longer side the image shows more of the world.
        fov: field of view of a square image in degrees; 0: orthographic.
    """
    c2w, half = c2w.float(), HALF_HEIGHT * max(1.0, height / width)
    if not fov:
        return Cameras(c2w, Projection.orthographic(c2w.new_full((len(c2w),), half), height, width), height, width)
    gap, c2w = HALF_HEIGHT / tan(radians(fov) / 2), c2w.clone()  # distance to the bounding cube
    c2w[:, :3, 3] = (HALF + gap) * c2w[:, :3, 2]
    vertical = c2w.new_full((len(c2w),), 2 * atan(half / gap))
    return Cameras(c2w, Projection.perspective(vertical, height, width), height, width)


def to_adapter_world(vectors: Tensor) -> Tensor:
    """Convert points or directions (..., 3) from our world to MV-Adapter's world: (x, y, z) becomes (y, -x, z)."""
    x, y, z = vectors.unbind(-1)
    return torch.stack([y, -x, z], dim=-1)


def ray_maps(at: Cameras) -> Tensor:
    """Return the condition guider's input for B cameras in our world: Pluecker rays (B, 6, H, W), scaled to [0, 1].

    All pixels of an orthographic camera have the same direction, so its map is (B, 6, 1, 1).
    """
    maps = view_rays(at.c2w)[:, :, None, None] if at.projection.parallel else plucker_rays(at)
    parts = (to_adapter_world(part.movedim(1, -1)).movedim(-1, 1) for part in maps.split(3, dim=1))
    return ray_control(torch.cat(list(parts), dim=1))


def geometry_maps(points: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """Return the condition guider's input for renders of a mesh: positions and normals (B, 6, H, W) in [0, 1].

    Args:
        points: surface point of each pixel in our world (B, H, W, 3), within [-0.5, 0.5].
        normals: unit normal of each pixel in our world (B, H, W, 3).
        mask: (B, H, W), 1 where the pixel shows the mesh, 0 elsewhere.
    """
    return geometry_control(to_adapter_world(points), to_adapter_world(normals), mask)


def untrained(c2w: Tensor, trained: Sequence[tuple[float, float]] = RAY_VIEWS, anywhere: bool = False) -> list[int]:
    """Return the indices of cameras whose direction from the origin is outside the training range of an adapter.

    Args:
        c2w: camera-to-world poses (B, 4, 4) in our world.
        trained: (elevation, azimuth) of the training views in degrees.
        anywhere: the adapter was also trained on all azimuths at elevations within `RAISED`.
    """
    elevation, azimuth = torch.tensor(trained, dtype=torch.float64).deg2rad().T
    known = unit_vector(elevation, azimuth)
    direction = normalize(c2w[:, :3, 3].double().cpu(), dim=-1)
    inside = (direction @ known.T).amax(1) >= cos(radians(TOLERANCE))
    if anywhere:
        degrees = direction[:, 2].asin().rad2deg()
        inside |= (degrees > RAISED[0] - TOLERANCE) & (degrees < RAISED[1] + TOLERANCE)
    return (~inside).nonzero().flatten().tolist()
