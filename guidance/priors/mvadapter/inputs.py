"""Inputs of MV-Adapter as in its training: cameras, maps of rays and of mesh geometry, reference images.

Our world has z up, and the front of an object faces +x. MV-Adapter's world is ours rotated by -90 degrees around z. The
released adapters have orthographic cameras at distance 1.8 that show 0.55 units on each side of the centre; meshes fit
into the cube [-0.5, 0.5]^3. Perspective cameras of our own adapters show the same extent at the front plane of that
cube.
"""

from collections.abc import Sequence
from math import atan, radians, tan

import torch
from torch import Tensor

from threedgen.geometry.cameras import Cameras, Projection, geometry_control, plucker_rays, ray_control, view_rays
from threedgen.geometry.poses import orbit_c2w
from threedgen.geometry.views import resize

DISTANCE, HALF_HEIGHT, HALF = 1.8, 0.55, 0.5
"""Camera distance, half of the image side, and largest coordinate of a mesh, all in world units."""
RAY_VIEWS = tuple((0.0, azimuth) for azimuth in (0.0, 45.0, 90.0, 180.0, 270.0, 315.0))
"""(elevation, azimuth) in degrees of the training views of adapters that take camera rays."""
GEOMETRY_VIEWS = (*((0.0, azimuth) for azimuth in (0.0, 90.0, 180.0, 270.0)), (89.99, 180.0), (-89.99, 180.0))
"""(elevation, azimuth) in degrees for adapters that take mesh geometry: front, right, back, left, top, bottom."""
RAISED = (0.0, 30.0)
"""Lowest and highest elevation in degrees of additional training views (`Form.anywhere` > 0)."""
SHARE, GREY = 0.9, 0.5
"""Fraction of a reference image that the object's longer side fills, and grey level of the background."""


def views(angles: Sequence[tuple[float, float]], height: int, width: int, fov: float = 0.0) -> Cameras:
    """Return B cameras around a mesh at the origin.

    Args:
        angles: B pairs (elevation, azimuth) in degrees.
        height, width, fov: image size in pixels, and field of view in degrees as in `towards_middle`; 0: orthographic.
    """
    elevation, azimuth = torch.tensor(angles, dtype=torch.float64).deg2rad().T
    return towards_middle(orbit_c2w(elevation, azimuth, torch.full_like(azimuth, DISTANCE)), height, width, fov)


def towards_middle(c2w: Tensor, height: int, width: int, fov: float = 0.0) -> Cameras:
    """Return cameras that show a whole mesh at the origin, with the viewing directions of the given poses.

    Args:
        c2w: camera-to-world poses (B, 4, 4), OpenGL axes. Perspective cameras keep the direction of the pose, not the
            distance: it follows from `fov`.
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
    x, y, z = vectors.unbind(-1)
    return torch.stack([y, -x, z], dim=-1)


def ray_maps(at: Cameras) -> Tensor:
    """Return the Pluecker rays of B cameras as input of MV-Adapter's condition guider: (B, 6, H, W) in [0, 1].

    The cameras are in threedgen's world, the rays in MV-Adapter's. All pixels of an orthographic camera have the same
    direction, so its map is (B, 6, 1, 1).
    """
    maps = view_rays(at.c2w)[:, :, None, None] if at.projection.parallel else plucker_rays(at)
    parts = (to_adapter_world(part.movedim(1, -1)).movedim(-1, 1) for part in maps.split(3, dim=1))
    return ray_control(torch.cat(list(parts), dim=1))


def geometry_maps(points: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """Return positions and normals of a mesh as input of MV-Adapter's condition guider: (B, 6, H, W) in [0, 1].

    The result is in MV-Adapter's world, the arguments in threedgen's.

    Args:
        points: surface point of each pixel (B, H, W, 3), within [-0.5, 0.5].
        normals: unit normal of each pixel (B, H, W, 3).
        mask: (B, H, W), 1 where the pixel shows the mesh, 0 elsewhere.
    """
    return geometry_control(to_adapter_world(points), to_adapter_world(normals), mask)


def framed(cut: Tensor, height: int, width: int, share: float = SHARE) -> Tensor:
    """Place a cut-out object in the middle of a grey image; return the image (height, width, 3) in [0, 1].

    `cut` is the object, RGBA (h, w, 4) in [0, 1]. It is resized to fill the fraction `share` of the image's height or
    width, whichever it reaches first.
    """
    rows, columns = (cut[..., 3] > 0).nonzero(as_tuple=True)
    (top, bottom), (left, right) = ((max(0, int(at.min()) - 1), int(at.max()) + 2) for at in (rows, columns))
    part = cut[top:bottom, left:right]
    part = torch.cat([part[..., :3] * part[..., 3:], part[..., 3:]], dim=-1)  # transparent colours do not bleed
    scale = share * min(height / part.shape[0], width / part.shape[1])
    sides = [max(1, round(scale * side)) for side in part.shape[:2]]
    colour, opaque = (
        resize(channels[None], *sides)[0] for channels in (part[..., :3], part[..., 3:].expand(-1, -1, 3))
    )
    image = torch.full((height, width, 3), GREY)
    y, x = (height - sides[0]) // 2, (width - sides[1]) // 2
    image[y : y + sides[0], x : x + sides[1]] = (colour + (1 - opaque) * GREY).clamp(0, 1)
    return image
