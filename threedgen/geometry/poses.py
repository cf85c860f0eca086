"""Camera matrices from positions and angles, and pixel rays. `threedgen.geometry.cameras` describes the axes."""

from math import pi
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from threedgen.run.dtypes import no_autocast

Poses = Literal["c2w", "w2c"]  # kind of pose matrices: camera-to-world ("c2w"), or its inverse world-to-camera ("w2c")


def unit_vector(elevation: Tensor, azimuth: Tensor) -> Tensor:
    """Return unit vectors (..., 3) at elevations and azimuths (...) in radians.

    Azimuth 0 is +x, azimuth pi / 2 is +y, and elevation pi / 2 is +z.
    """
    flat = torch.cos(elevation)
    return torch.stack([flat * torch.cos(azimuth), flat * torch.sin(azimuth), torch.sin(elevation)], dim=-1)


def wrap_angle(angle: Tensor) -> Tensor:
    """Wrap angles (...) in radians to [-pi, pi)."""
    return torch.remainder(angle + pi, 2 * pi) - pi


def opencv_axes(c2w: Tensor) -> Tensor:
    """Convert camera-to-world poses (..., 4, 4) or rotations (..., 3, 3) from OpenGL to OpenCV camera axes, or back.

    OpenGL: x right, y up, z backward. OpenCV: x right, y down, z forward. The world does not change.
    """
    return c2w * c2w.new_tensor([1.0, -1.0, -1.0, 1.0])[: c2w.shape[-1]]


def opengl_to_blender(c2w: Tensor) -> Tensor:
    """Convert camera-to-world poses (B, 4, 4) from a y-up (OpenGL) to a z-up (Blender) world.

    The world point (x, y, z) becomes (x, -z, y). The axes of the cameras themselves do not change.
    """
    turn = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    return turn.to(c2w) @ c2w


def square_pixels(focal: Tensor, height: int, width: int) -> Tensor:
    """Return intrinsics (B, 3, 3) for focal lengths (B,) in pixels.

    The principal point is the image centre, (width / 2, height / 2) in pixels.
    """
    K = torch.zeros(len(focal), 3, 3, dtype=focal.dtype, device=focal.device)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = width / 2, height / 2, 1
    return K


def pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """Return the pixel centres (H, W, 2) of an image as (x, y); the first centre is (0.5, 0.5)."""
    x, y = torch.arange(width, device=device) + 0.5, torch.arange(height, device=device) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def pixels_to_plane(pixels: Tensor, K: Tensor) -> Tensor:
    """Convert pixels (..., N, 2) to points (..., N, 2): x right and y down from the viewing axis, in world units.

    For perspective cameras, the point is where the pixel's ray meets the plane at depth 1. For orthographic cameras,
    rays are parallel to the viewing axis, and the point is the ray's offset from the axis, the same at any depth. The
    point is K^-1 times the pixel, with upper triangular intrinsics K (..., 3, 3). y points down also for cameras whose
    poses have OpenGL axes (y up).
    """
    y = (pixels[..., 1] - K[..., 1, 2, None]) / K[..., 1, 1, None]
    x = (pixels[..., 0] - K[..., 0, 2, None] - K[..., 0, 1, None] * y) / K[..., 0, 0, None]
    return torch.stack([x, y], dim=-1)


def plane_to_pixels(plane: Tensor, K: Tensor) -> Tensor:
    """Convert points (..., N, 2), x right and y down from the viewing axis in world units, to pixels (..., N, 2).

    The inverse of `pixels_to_plane`. For perspective cameras, the points lie on the plane at depth 1. For orthographic
    cameras, they may be at any depth. K (..., 3, 3) are upper triangular intrinsics.
    """
    x, y = plane.unbind(-1)
    x = x * K[..., 0, 0, None] + y * K[..., 0, 1, None] + K[..., 0, 2, None]
    return torch.stack([x, y * K[..., 1, 1, None] + K[..., 1, 2, None]], dim=-1)


def pixel_rays(c2w: Tensor, K: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return origins (..., 1, 1, 3) and unit directions (..., H, W, 3) of the pixel rays of perspective cameras.

    Takes camera-to-world poses (..., 4, 4) with OpenGL axes, and K (..., 3, 3) and the image size in pixels (first
    pixel centre (0.5, 0.5)). The results are float32, in world coordinates.
    """
    c2w, K = c2w.float(), K.float()
    with no_autocast(c2w.device):  # bfloat16 products would shift rays by pixels
        x, y = pixels_to_plane(pixel_centres(height, width, c2w.device).reshape(-1, 2), K).unbind(-1)
        local = torch.stack([x, -y, -torch.ones_like(x)], dim=-1)
        directions = normalize(local @ c2w[..., :3, :3].mT, dim=-1).unflatten(-2, (height, width))
        return c2w[..., None, None, :3, 3], directions


def orbit_c2w(elevation: Tensor, azimuth: Tensor, distance: Tensor) -> Tensor:
    """Return camera-to-world poses (B, 4, 4) that look at the origin, z up.

    The cameras have OpenGL axes. Their `elevation` and `azimuth` (B,) are in radians; azimuth 0 is on the +x side, pi /
    2 on the +y side. `distance` (B,) is the distance from the origin in world units.
    """
    back = unit_vector(elevation, azimuth)
    right = unit_vector(torch.zeros_like(elevation), azimuth + pi / 2)
    up = unit_vector(elevation + pi / 2, azimuth)
    return _assemble(right, up, back, back * distance[..., None])


def orbit_array(elevation: ArrayLike, azimuth: ArrayLike, distance: ArrayLike) -> NDArray[np.float32]:
    """Return camera-to-world poses (B, 4, 4), a float32 array, that look at the origin, z up.

    The cameras have OpenGL axes, and azimuth 0 is on the +x side. `elevation` and `azimuth` in radians and `distance`
    in world units are numbers or arrays that broadcast to (B,).
    """
    tensors = (torch.from_numpy(np.array(x, np.float64)) for x in np.broadcast_arrays(elevation, azimuth, distance))
    return orbit_c2w(*tensors).float().numpy()


def look_at(position: Tensor, center: Tensor, up: Tensor) -> Tensor:
    """Return camera-to-world poses (B, 4, 4) at `position` that look at `center`. All arguments are (B, 3).

    The poses have OpenGL axes, the arguments are in world coordinates. `up` is the direction that points upwards in the
    image. Where it is parallel to the viewing direction, a coordinate axis is used instead.
    """
    forward = normalize(center - position, dim=-1)
    right = torch.linalg.cross(forward, up, dim=-1)
    parallel = right.norm(dim=-1, keepdim=True) < 1e-6 * up.norm(dim=-1, keepdim=True)
    fallback_axis = one_hot(forward.abs().argmin(dim=-1), 3).to(forward)
    right = torch.where(parallel, torch.linalg.cross(forward, fallback_axis, dim=-1), right)
    right = normalize(right, dim=-1)
    true_up = normalize(torch.linalg.cross(right, forward, dim=-1), dim=-1)
    return _assemble(right, true_up, -forward, position)


def _assemble(right: Tensor, up: Tensor, back: Tensor, position: Tensor) -> Tensor:
    top = torch.stack([right, up, back, position], dim=-1)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=top.dtype, device=top.device)
    return torch.cat([top, bottom.expand(*top.shape[:-2], 1, 4)], dim=-2)


def world_to_camera(c2w: Tensor) -> Tensor:
    """Invert rigid poses (..., 4, 4): camera-to-world becomes world-to-camera, and the reverse."""
    rotation = c2w[..., :3, :3].mT
    top = torch.cat([rotation, -rotation @ c2w[..., :3, 3:]], dim=-1)
    return torch.cat([top, c2w[..., 3:, :]], dim=-2)
