"""Reference implementation of the hash grid in plain torch. All back ends use these formulas (those of tiny-cuda-nn).

For level l of a grid with base resolution b, growth g and at most 2^T table entries per level:

    scale_l      = b g^l - 1, in float32
    resolution_l = ceil(scale_l) + 1
    entries_l    = min(resolution_l^3 rounded up to a multiple of 8, 2^T)
    position     = scale_l x + 1/2      for x in [0, 1]^3, clamped
    index        = x + y resolution_l + z resolution_l^2        if the whole grid fits ("dense")
                   x xor 2654435761 y xor 805459861 z           in uint32, otherwise ("hashed")
                   of the corners of the cell, modulo entries_l
    value        = trilinear interpolation between the 8 corners
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True, eq=False)
class Levels:
    """Geometry of the L levels of a hash grid, as NumPy arrays for the kernels."""

    scale: np.ndarray  # (L,) float32, cells per unit length
    resolution: np.ndarray  # (L,) uint32, grid points per axis
    offset: np.ndarray  # (L+1,) uint32, first entry of each level in the table; last: number of entries
    hashed: np.ndarray  # (L,) bool, False for dense levels
    n_levels: int
    log2_entries: int  # log2 of the maximum number of entries per level
    base: int  # resolution of the coarsest level
    growth: float  # resolution ratio between levels

    @property
    def entries(self) -> int:
        """Number of table rows of all levels."""
        return int(self.offset[-1])


@lru_cache(maxsize=64)
def grid_levels(n_levels: int, log2_hashmap_size: int, base_resolution: int, per_level_scale: float) -> Levels:
    """Return the geometry of a grid, cached. The scale is rounded to float32, which decides the resolutions."""
    growth = np.log2(np.float32(per_level_scale), dtype=np.float32)
    exponent = np.arange(n_levels, dtype=np.float32) * growth
    scale = np.exp2(exponent, dtype=np.float32) * np.float32(base_resolution) - np.float32(1)
    resolution = np.ceil(scale).astype(np.int64) + 1
    dense = [math.ceil(int(r) ** 3 / 8) * 8 for r in resolution]
    entries = [min(count, 2**log2_hashmap_size) for count in dense]
    return Levels(
        scale=scale.astype(np.float32),
        resolution=resolution.astype(np.uint32),
        offset=np.cumsum([0, *entries]).astype(np.uint32),
        hashed=np.array([count > 2**log2_hashmap_size for count in dense]),
        n_levels=n_levels,
        log2_entries=log2_hashmap_size,
        base=base_resolution,
        growth=per_level_scale,
    )


def corner_indices(cell: Tensor, resolution: int, entries: int, hashed: bool) -> Tensor:
    """Return the table rows (N, 8) int64, counted within their level, of the corners of cells (N, 3) int64 >= 0.

    Bits 0, 1 and 2 of the corner number are its offsets in x, y and z.
    """
    corner = torch.arange(8, device=cell.device)
    offsets = torch.stack([corner & 1, corner >> 1 & 1, corner >> 2], dim=-1)
    at = cell[:, None, :] + offsets
    if hashed:
        mixed = [(at[..., d] * PRIMES[d]) & 0xFFFFFFFF for d in range(3)]
        return (mixed[0] ^ mixed[1] ^ mixed[2]) % entries
    return (at[..., 0] + resolution * (at[..., 1] + resolution * at[..., 2])) % entries


def corner_weights(fraction: Tensor) -> Tensor:
    """Return the trilinear weights (N, 8) of the corners, for positions in the cell (N, 3) in [0, 1]."""
    x, y, z = (torch.stack([1 - fraction[:, d], fraction[:, d]], dim=-1) for d in range(3))
    return (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).flatten(1)


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Return features (N, L*F), ordered by level. They are differentiable any number of times.

    Args:
        x: (N, 3) points in [0, 1]^3. Points outside are clamped, and NaN counts as 0.
        table: (entries, F) features of all levels.
    """
    inside = torch.nan_to_num(x).clamp(0, 1)
    features = []
    for level, entries in enumerate(table.split(np.diff(levels.offset).tolist())):
        position = inside * float(levels.scale[level]) + 0.5
        cell = position.detach().floor()
        resolution, hashed = int(levels.resolution[level]), bool(levels.hashed[level])
        index = corner_indices(cell.long(), resolution, len(entries), hashed)
        corners = F.embedding(index, entries)  # its backward adds in a fixed order, unlike entries[index]
        features.append((corner_weights(position - cell)[..., None] * corners).sum(dim=1))
    return torch.cat(features, dim=-1)


def position_gradient(
    x: Tensor, table: Tensor, grad: Tensor, levels: Levels, encode: Callable[[Tensor, Tensor, Levels], Tensor] = encode
) -> Tensor:
    """Return the vector-Jacobian product (N, 3) of `encode` at points x (N, 3) with the feature gradient (N, L*F).

    If grad mode is on, the result is differentiable in x, table and grad.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x if x.requires_grad and create_graph else x.detach().requires_grad_()
        return torch.autograd.grad(encode(leaf, table, levels), leaf, grad, create_graph=create_graph)[0]
