"""Pictures of six channels that tell a network from where it looks, or what shape it looks at: pure functions.

Channels are (direction, position) of the camera, (direction, moment) of the lines of sight, or (position, normal) of
the surface, x y z each, in the world; what a network is given lies in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .cameras import Cameras


def view_rays(c2w: Tensor) -> Tensor:
    """Viewing directions and unit positions (B,6) of poses (B,4,4): of parallel rays all pixels have the same.

    So maps (B,6,1,1) of it say all; neither the distance nor the size of what is seen is told.
    """
    return torch.cat([-normalize(c2w[:, :3, 2], dim=-1), normalize(c2w[:, :3, 3], dim=-1)], dim=1)


def sight_lines(cameras: Cameras) -> Tensor:
    """Lines of sight through the pixel centres (B,6,H,W): unit directions d, and moments o x d around the origin, which
    are as long as the line is far from it (Pluecker coordinates)."""
    origins, directions = cameras.rays()
    moments = torch.linalg.cross(origins, directions, dim=-1)
    return torch.cat([directions, moments], dim=-1).permute(0, 3, 1, 2)


def ray_control(rays: Tensor, offset: float = 1.0, scale: float = 2.0) -> Tensor:
    """Directions, and unit positions or moments, from [-1, 1] to [0, 1], clamped: (rays + offset) / scale."""
    return ((rays + offset) / scale).clamp(0, 1)


def position_control(points: Tensor, mask: Tensor, offset: float = 0.5, scale: float = 1.0) -> Tensor:
    """Points (B,H,W,3) of a mesh whose largest coordinate is 0.5, and the ``mask`` (B,H,W) of where they are, which
    elsewhere are as in the middle: (B,3,H,W) in [0, 1], clamped: (points + offset) / scale."""
    return ((_there(points, mask) + offset) / scale).clamp(0, 1)


def normal_control(normals: Tensor, mask: Tensor) -> Tensor:
    """Unit normals (B,H,W,3), and the ``mask`` (B,H,W) of where they are, elsewhere zero: (B,3,H,W) in [0, 1]."""
    return ((_there(normals, mask) + 1) / 2).clamp(0, 1)


def geometry_control(points: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """Maps (B,6,H,W) of a mesh, see ``position_control`` and ``normal_control``."""
    return torch.cat([position_control(points, mask), normal_control(normals, mask)], dim=1)


def _there(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool()[..., None], values, 0.0).permute(0, 3, 1, 2)
