"""Rasterisation on a GPU with nvdiffrast (Laine et al. 2020), if it is installed."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from threedgen.geometry.cameras import Cameras

NEAR = 1e-2  # depth of the clipping plane in world units, as in `threedgen.geometry.raster`


@torch.no_grad()
def visible_faces(vertices: Tensor, faces: Tensor, cameras: Cameras) -> Tensor:
    """Return the index of the nearest face at each pixel centre, (B, H, W) int64, -1 for the background.

    `vertices` are (N, 3) in world units, `faces` (F, 3) int64; the B cameras are perspective.
    """
    cameras = cameras.to(vertices.device)
    local = (vertices - cameras.position[:, None]) @ cameras.c2w[:, :3, :3]
    x, y, depth = (local * local.new_tensor([1.0, -1.0, -1.0]) @ cameras.K.mT).unbind(-1)  # pixel * depth, depth
    # clip coordinates of nvdiffrast, whose first row has y = -1; without a far plane
    clip = torch.stack([2 * x / cameras.width - depth, 2 * y / cameras.height - depth, depth - 2 * NEAR, depth], dim=-1)
    context, library = _context(vertices.device)
    size = [cameras.height, cameras.width]
    buffer, _ = library.rasterize(context, clip.float().contiguous(), faces.int(), size, grad_db=False)
    face: Tensor = buffer[..., 3].long() - 1
    return face


@cache
def _context(device: torch.device) -> tuple[Any, Any]:
    import nvdiffrast.torch as library

    return library.RasterizeCudaContext(device), library
