"""Maps of rays in perspective, as MV-Adapter's code has them and no released adapter uses them."""

from __future__ import annotations

import torch
from torch import Tensor

from threedgen.geometry.cameras import Cameras


def pluecker_map(cameras: Cameras) -> Tensor:
    """Lines through the pixel centres (B,6,H,W): unit directions d, and moments o x d around the origin."""
    origins, directions = cameras.rays()
    moments = torch.linalg.cross(origins, directions, dim=-1)
    return torch.cat([directions, moments], dim=-1).permute(0, 3, 1, 2)
