"""Six-channel condition maps of cameras and surfaces.

Channels, three each in world coordinates: camera (direction, position), Pluecker rays (direction, moment) or surface
(position, normal). The ``*_control`` functions scale them to the network's input range [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .cameras import Cameras


def view_rays(c2w: Tensor) -> Tensor:
    """Return viewing direction and unit position (B, 6) of poses (B, 4, 4), without camera distance or image scale.

    For orthographic cameras these are equal for all pixels, so that maps of shape (B, 6, 1, 1) are sufficient.
    """
    return torch.cat([-normalize(c2w[:, :3, 2], dim=-1), normalize(c2w[:, :3, 3], dim=-1)], dim=1)


def plucker_rays(cameras: Cameras) -> Tensor:
    """Return Pluecker coordinates (B, 6, H, W) of the pixel rays: unit directions d and moments o x d."""
    origins, directions = cameras.rays()
    moments = torch.linalg.cross(origins, directions, dim=-1)
    return torch.cat([directions, moments], dim=-1).permute(0, 3, 1, 2)


def ray_control(rays: Tensor, offset: float = 1.0, scale: float = 2.0) -> Tensor:
    """Map directions and positions or moments from [-1, 1] to [0, 1], clamped: (rays + offset) / scale."""
    return ((rays + offset) / scale).clamp(0, 1)


def position_control(points: Tensor, mask: Tensor, offset: float = 0.5, scale: float = 1.0) -> Tensor:
    """Map surface points (B, H, W, 3) in [-0.5, 0.5] to (B, 3, H, W) in [0, 1], clamped: (points + offset) / scale.

    Pixels outside ``mask`` (B, H, W) get the value of the origin.
    """
    return ((_masked(points, mask) + offset) / scale).clamp(0, 1)


def normal_control(normals: Tensor, mask: Tensor) -> Tensor:
    """Map unit normals (B, H, W, 3) to (B, 3, H, W) in [0, 1]; pixels outside ``mask`` (B, H, W) become 0.5."""
    return ((_masked(normals, mask) + 1) / 2).clamp(0, 1)


def geometry_control(points: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """Concatenate ``position_control`` and ``normal_control`` to (B, 6, H, W)."""
    return torch.cat([position_control(points, mask), normal_control(normals, mask)], dim=1)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool()[..., None], values, 0.0).permute(0, 3, 1, 2)
