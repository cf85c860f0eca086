"""Inputs of MV-Adapter as in its training: cameras, maps of rays and of mesh geometry, reference images.

threedgen's world has z up, and the front of an object faces +x. MV-Adapter's world is rotated by -90 degrees around z:
a point (x, y, z) has the coordinates (y, -x, z) there. The adapters that MV-Adapter's authors published have
orthographic cameras at distance 1.8 that show 0.55 units on each side of the centre; meshes fit into the cube
[-0.5, 0.5]^3. The perspective cameras of adapters trained with threedgen show the same extent at the side of that cube
that faces the camera.
"""

from collections.abc import Sequence
from math import atan, radians, tan

import torch
from torch import Tensor

from threedgen.geometry.cameras import Cameras, Projection, geometry_control, plucker_rays, ray_control, view_rays
from threedgen.geometry.poses import orbit_c2w

DISTANCE, HALF_HEIGHT, HALF = 1.8, 0.55, 0.5
"""DISTANCE: distance of orthographic cameras from the origin. HALF_HEIGHT: half the extent that an image shows at the
object. HALF: largest absolute coordinate of a mesh. All in world units."""
RAY_VIEWS = tuple((0.0, azimuth) for azimuth in (0.0, 45.0, 90.0, 180.0, 270.0, 315.0))
"""(elevation, azimuth) in degrees of the training views of adapters that take camera rays."""
GEOMETRY_VIEWS = (*((0.0, azimuth) for azimuth in (0.0, 90.0, 180.0, 270.0)), (89.99, 180.0), (-89.99, 180.0))
"""(elevation, azimuth) in degrees of the training views of adapters that take mesh geometry: front, right, back, left,
top, bottom."""
RAISED = (0.0, 30.0)
"""Lowest and highest elevation in degrees of training views at random directions (`AdapterSettings.anywhere` > 0)."""


def cameras_from_angles(angles: Sequence[tuple[float, float]], height: int, width: int, fov: float = 0.0) -> Cameras:
    """Return B cameras that look at the origin from given angles, for a mesh in the cube [-0.5, 0.5]^3.

    The shorter side of the image shows 1.1 world units. With perspective, this is the extent in the plane that faces
    the camera, 0.5 in front of the origin. The distance of the cameras from the origin is 1.8 (orthographic) or
    0.5 + 0.55 / tan(fov / 2) (perspective).

    Args:
        angles: B pairs (elevation, azimuth) in degrees. Elevations are positive for views from above. Azimuth 0 is the
            front (+x), 90 is +y.
        height, width: image size in pixels.
        fov: field of view in degrees along the shorter side of the image; 0: orthographic.
    """
    elevation, azimuth = torch.tensor(angles, dtype=torch.float64).deg2rad().T
    return cameras_facing_mesh(orbit_c2w(elevation, azimuth, torch.full_like(azimuth, DISTANCE)), height, width, fov)


def cameras_facing_mesh(c2w: Tensor, height: int, width: int, fov: float = 0.0) -> Cameras:
    """Return B cameras with the viewing directions of `c2w`, for a mesh in the cube [-0.5, 0.5]^3.

    The shorter side of the image shows 1.1 world units, the longer side more. With perspective, this is the extent in
    the plane that faces the camera, 0.5 in front of the origin.

    Args:
        c2w: camera-to-world poses (B, 4, 4), OpenGL axes, that look at the origin. Orthographic cameras keep the pose,
            perspective cameras only its rotation: their distance from the origin becomes 0.5 + 0.55 / tan(fov / 2).
        height, width: image size in pixels.
        fov: field of view in degrees along the shorter side of the image; 0: orthographic.
    """
    c2w, half = c2w.float(), HALF_HEIGHT * max(1.0, height / width)
    if not fov:
        return Cameras(c2w, Projection.orthographic(c2w.new_full((len(c2w),), half), height, width), height, width)
    gap, c2w = HALF_HEIGHT / tan(radians(fov) / 2), c2w.clone()  # distance to the bounding cube
    c2w[:, :3, 3] = (HALF + gap) * c2w[:, :3, 2]
    vertical = c2w.new_full((len(c2w),), 2 * atan(half / gap))
    return Cameras(c2w, Projection.perspective(vertical, height, width), height, width)


def to_adapter_world(vectors: Tensor) -> Tensor:
    x, y, z = vectors.unbind(-1)
    return torch.stack([y, -x, z], dim=-1)


def ray_maps(at: Cameras) -> Tensor:
    """Return maps in [0, 1] of the camera rays of B cameras, as input of an MV-Adapter.

    - Perspective cameras: (B, 6, H, W), Pluecker coordinates of each pixel's ray: unit direction d (3 channels) and
      moment (3), the cross product of the ray's origin and d.
    - Orthographic cameras: (B, 6, 1, 1), because the values are equal for all pixels: viewing direction (3) and camera
      position scaled to length 1 (3).

    The range [-1, 1] is mapped to [0, 1], and values outside, which a moment can have, are clamped. The cameras are in
    threedgen's world; a vector (x, y, z) of it is (y, -x, z) in the result, as in MV-Adapter's world.
    """
    maps = view_rays(at.c2w)[:, :, None, None] if at.projection.parallel else plucker_rays(at)
    parts = (to_adapter_world(part.movedim(1, -1)).movedim(-1, 1) for part in maps.split(3, dim=1))
    return ray_control(torch.cat(list(parts), dim=1))


def geometry_maps(points: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """Return maps (B, 6, H, W) in [0, 1] of the positions and normals of a mesh, as input of an MV-Adapter.

    Channels 0 to 2 are positions + 0.5, 3 to 5 (normals + 1) / 2; pixels without mesh are 0.5. A vector (x, y, z) of
    threedgen's world is (y, -x, z) in the result, as in MV-Adapter's world.

    Args:
        points: surface point of each pixel (B, H, W, 3) in threedgen's world, within [-0.5, 0.5].
        normals: unit normal of each pixel (B, H, W, 3), in threedgen's world.
        mask: (B, H, W), 1 where the pixel shows the mesh, 0 elsewhere.
    """
    return geometry_control(to_adapter_world(points), to_adapter_world(normals), mask)
