"""Reference implementation of the hash grid in plain torch. All back ends use its formulas, from tiny-cuda-nn.

For level l of a grid with base resolution b, growth g and at most 2^T table entries per level:

    scale_l      = b g^l - 1, in float32
    resolution_l = ceil(scale_l) + 1
    entries_l    = min(resolution_l^3 rounded up to a multiple of 8, 2^T)
    position     = scale_l x + 1/2      for x in [0, 1]^3, clamped
    index        = i + j resolution_l + k resolution_l^2        if the whole grid fits ("dense")
                   i xor 2654435761 j xor 805459861 k           in uint32, otherwise ("hashed")
                   modulo entries_l, for each corner (i, j, k) of the cell that has the position
    value        = trilinear interpolation at the position between the table entries of the 8 corners
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True, eq=False)
class Levels:
    """Levels of a hash grid: arrays with the scale, resolution, first table entry and kind (dense or hashed) of each.

    The scale is the number of cells per unit length, the resolution the number of grid points per axis. "Dense" levels
    have a table entry for each grid point; in "hashed" ones, grid points share entries.
    """

    scale: np.ndarray  # (L,) float32, cells per unit length
    resolution: np.ndarray  # (L,) int32, grid points per axis
    offset: np.ndarray  # (L+1,) int64, first entry of each level in the table; last: number of entries
    hashed: np.ndarray  # (L,) bool, False for dense levels
    n_levels: int
    log2_entries: int  # log2 of the maximum number of entries per level
    base: int  # resolution of the coarsest level
    growth: float  # resolution ratio between levels

    @property
    def entries(self) -> int:
        """Number of table entries of all levels together."""
        return int(self.offset[-1])


@lru_cache(maxsize=64)
def grid_levels(n_levels: int, log2_hashmap_size: int, base_resolution: int, per_level_scale: float) -> Levels:
    """Return the levels of a hash grid, from coarse to fine.

    Level l has the scale base_resolution * per_level_scale^l - 1, in cells per unit length, and ceil(scale) + 1 grid
    points per axis, its resolution. Scales are rounded to float32, which can change a resolution. `log2_hashmap_size`
    is log2 of the maximum number of table entries per level; levels with more grid points are hashed, others dense.
    """
    growth = np.log2(np.float32(per_level_scale), dtype=np.float32)
    exponent = np.arange(n_levels, dtype=np.float32) * growth
    scale = np.exp2(exponent, dtype=np.float32) * np.float32(base_resolution) - np.float32(1)
    resolution = np.ceil(scale).astype(np.int64) + 1
    dense = [math.ceil(int(r) ** 3 / 8) * 8 for r in resolution]
    entries = [min(count, 2**log2_hashmap_size) for count in dense]
    return Levels(
        scale=scale,
        resolution=resolution.astype(np.int32),
        offset=np.cumsum([0, *entries], dtype=np.int64),
        hashed=np.array([count > 2**log2_hashmap_size for count in dense]),
        n_levels=n_levels,
        log2_entries=log2_hashmap_size,
        base=base_resolution,
        growth=per_level_scale,
    )


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Return hash grid features (N, L*F) of N points, for L levels with F features each, ordered by level.

    The features are differentiable any number of times.

    Args:
        x: (N, 3) points in [0, 1]^3. Points outside are clamped, and NaN counts as 0.
        table: (entries, F) features of all levels.
        levels: scale, resolution and first table entry of each level.
    """
    inside, number, features = torch.nan_to_num(x).clamp(0, 1), torch.arange(8, device=x.device), []
    offsets = torch.stack([number & 1, number >> 1 & 1, number >> 2], dim=-1)  # of the corners in x, y and z
    for level, entries in enumerate(table.split(np.diff(levels.offset).tolist())):
        position = inside * float(levels.scale[level]) + 0.5
        cell = position.detach().floor()
        at, resolution = (cell.long()[:, None, :] + offsets).unbind(-1), int(levels.resolution[level])
        if levels.hashed[level]:
            mixed = [(coordinate * prime) & 0xFFFFFFFF for coordinate, prime in zip(at, PRIMES, strict=True)]
            index = mixed[0] ^ mixed[1] ^ mixed[2]
        else:
            index = at[0] + resolution * (at[1] + resolution * at[2])
        corners = F.embedding(index % len(entries), entries)  # its backward adds in a fixed order, unlike entries[...]
        u, v, w = (torch.stack([1 - side, side], dim=-1) for side in (position - cell).unbind(-1))
        weights = (w[:, :, None, None] * v[:, None, :, None] * u[:, None, None, :]).flatten(1)
        features.append((weights[..., None] * corners).sum(dim=1))
    return torch.cat(features, dim=-1)
