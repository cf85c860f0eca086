"""Six-channel maps of cameras and surfaces, which condition a network.

Each map has two triples of channels in world coordinates: direction and position of the camera, direction and moment of
Pluecker rays, or position and normal of the surface. The ``*_control`` functions map them to the network's input range
[0, 1].
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .cameras import Cameras


def view_rays(c2w: Tensor) -> Tensor:
    """Return viewing directions (channels 0-2) and unit positions (channels 3-5), (B, 6), of c2w poses (B, 4, 4).

    The camera distance and the image scale are not included. For orthographic cameras the values are equal for all
    pixels, so that maps of shape (B, 6, 1, 1) are sufficient.
    """
    return torch.cat([-normalize(c2w[:, :3, 2], dim=-1), normalize(c2w[:, :3, 3], dim=-1)], dim=1)


def plucker_rays(cameras: Cameras) -> Tensor:
    """Return Pluecker coordinates (B, 6, H, W) of the pixel rays: unit directions d (channels 0-2) and moments o x d.

    The moments are the cross products with the ray origins o, in world units.
    """
    origins, directions = cameras.rays()
    moments = torch.linalg.cross(origins, directions, dim=-1)
    return torch.cat([directions, moments], dim=-1).permute(0, 3, 1, 2)


def ray_control(rays: Tensor, offset: float = 1.0, scale: float = 2.0) -> Tensor:
    """Map rays (B, 6, ...) from [-1, 1] to [0, 1] by (rays + offset) / scale, clamped to [0, 1]."""
    return ((rays + offset) / scale).clamp(0, 1)


def position_control(points: Tensor, mask: Tensor, offset: float = 0.5, scale: float = 1.0) -> Tensor:
    """Map surface points (B, H, W, 3) in [-0.5, 0.5] to (B, 3, H, W) in [0, 1] by (points + offset) / scale, clamped.

    Pixels outside the foreground ``mask`` (B, H, W) get the value of the origin.
    """
    return ((_masked(points, mask) + offset) / scale).clamp(0, 1)


def normal_control(normals: Tensor, mask: Tensor) -> Tensor:
    """Map unit normals (B, H, W, 3) to (B, 3, H, W) in [0, 1]. Pixels outside ``mask`` (B, H, W) get 0.5."""
    return ((_masked(normals, mask) + 1) / 2).clamp(0, 1)


def geometry_control(points: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """Return position maps (channels 0-2) and normal maps (channels 3-5), (B, 6, H, W) in [0, 1].

    Surface points in [-0.5, 0.5] and unit normals are (B, H, W, 3), the foreground ``mask`` is (B, H, W).
    """
    return torch.cat([position_control(points, mask), normal_control(normals, mask)], dim=1)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool()[..., None], values, 0.0).permute(0, 3, 1, 2)
