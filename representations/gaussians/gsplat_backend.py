"""Compositing of 3D Gaussians with the CUDA kernels of gsplat (Ye et al. 2025), if the package is installed."""

import torch
from gsplat import isect_offset_encode, isect_tiles, rasterize_to_pixels
from torch import Tensor

from . import ProjectedSplats

TILE = 16  # side of a tile in pixels


def composite(splats: ProjectedSplats, height: int, width: int) -> Tensor:
    columns, rows = -(-width // TILE), -(-height // TILE)
    _, keys, order = isect_tiles(splats.means, splats.extents.ceil().int(), splats.depths, TILE, columns, rows)
    offsets = isect_offset_encode(keys, len(splats.means), columns, rows)
    means, conics, opacities, values = (part.contiguous() for part in splats[:4])
    colours, alphas = rasterize_to_pixels(means, conics, values, opacities, width, height, TILE, offsets, order)
    return torch.cat([colours, alphas], dim=-1)
