"""Hash grid on GPUs with Triton, with the levels, indices and weights that torch_twin.py defines.

numba_kernels.py explains the algebra. One program processes a block of points in one level, or in all levels for the
gradient with respect to the points. The blocks of a level run one after the other, so that its table stays in the L2
cache. Additions to the table's gradient are atomic, so its last bits vary between runs.

Arrays, for N points and L levels with F features per entry, all contiguous. In float32: points x (N, 3); directions
(N, 3) along which derivatives with respect to x are taken; features and gradients of features (L*F, N); table
(entries, F); `scales` (L,), the cells per unit length of each level. In int32: `geometry` (L, 4), with resolution (grid
points per axis), first table entry, number of entries, 1 for hashed or 0 for dense levels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .torch_twin import Levels

BLOCK = tl.constexpr(256)  # points per program


@triton.jit
def _row(x, y, z, corner: tl.constexpr, resolution, entries, hashed):
    # Row in the level's table of a corner of cell (x, y, z). Bits 0 to 2 of `corner` are x, y, z offsets. A hashed
    # level has a power of two entries, so modulo is a mask. A dense index is below twice the number of entries.
    x, y, z = x + (corner & 1), y + ((corner >> 1) & 1), z + (corner >> 2)
    mixed = x.to(tl.uint32) ^ (y.to(tl.uint32) * 2654435761) ^ (z.to(tl.uint32) * 805459861)
    dense = x + resolution * (y + resolution * z)
    dense = tl.where(dense >= entries, dense - entries, dense)
    return tl.where(hashed != 0, mixed.to(tl.int32) & (entries - 1), dense)


@triton.jit
def _side(fraction, upper: tl.constexpr):
    return fraction if upper else 1.0 - fraction


@triton.jit
def _signed(slope, upper: tl.constexpr):
    return slope if upper else -slope


@triton.jit
def _weight(x, y, z, u, v, w, corner: tl.constexpr, ALONG: tl.constexpr):
    # a corner's trilinear weight at (x, y, z) in the cell or, if ALONG, its derivative along (u, v, w)
    a, b, c = _side(x, corner & 1), _side(y, (corner >> 1) & 1), _side(z, corner >> 2)
    if ALONG:
        p, q, r = _signed(u, corner & 1), _signed(v, (corner >> 1) & 1), _signed(w, corner >> 2)
        weight = p * b * c + a * q * c + a * b * r
    else:
        weight = a * b * c
    return weight


@triton.jit
def _level(scales, geometry, level):
    shape = geometry + level * 4
    return tl.load(scales + level), tl.load(shape), tl.load(shape + 1), tl.load(shape + 2), tl.load(shape + 3)


@triton.jit
def _axis(x, direction, at, mask, scale, ALONG: tl.constexpr):
    # cell index, position in the cell and d(position)/dx on one axis; if ALONG, the last one times `direction`
    coordinate = tl.load(x + at * 3, mask=mask, other=0.0)
    position = tl.where(coordinate > 0, tl.minimum(coordinate, 1.0), 0.0) * scale + 0.5
    speed = tl.where((coordinate >= 0) & (coordinate <= 1), scale, 0.0)
    if ALONG:
        speed = speed * tl.load(direction + at * 3, mask=mask, other=0.0)
    cell = position.to(tl.int32)
    return cell, position - cell.to(tl.float32), speed


@triton.jit
def _locate(x, direction, at, mask, scale, ALONG: tl.constexpr):
    i, fx, u = _axis(x, direction, at, mask, scale, ALONG)
    j, fy, v = _axis(x + 1, direction + 1, at, mask, scale, ALONG)
    k, fz, w = _axis(x + 2, direction + 2, at, mask, scale, ALONG)
    return i, j, k, fx, fy, fz, u, v, w


@triton.jit
def _encode(x, direction, table, out, scales, geometry, n, F: tl.constexpr, PAIRS: tl.constexpr, ALONG: tl.constexpr):
    level = tl.program_id(1)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    f = tl.arange(0, PAIRS)
    mask = at < n
    valid = mask[:, None] & (f < F)[None, :]
    scale, resolution, first, entries, hashed = _level(scales, geometry, level)
    i, j, k, fx, fy, fz, u, v, w = _locate(x, direction, at, mask, scale, ALONG)
    total = tl.zeros((BLOCK, PAIRS), tl.float32)
    for corner in tl.static_range(8):
        row = (first + _row(i, j, k, corner, resolution, entries, hashed)).to(tl.int64)
        values = tl.load(table + row[:, None] * F + f[None, :], mask=valid, other=0.0)
        total += _weight(fx, fy, fz, u, v, w, corner, ALONG)[:, None] * values
    tl.store(out + (level * F + f[None, :]).to(tl.int64) * n + at[:, None], total, mask=valid)


@triton.jit
def _scatter(x, direction, grad, out, scales, geometry, n, F: tl.constexpr, PAIRS: tl.constexpr, ALONG: tl.constexpr):
    level = tl.program_id(1)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    f = tl.arange(0, PAIRS)
    mask = at < n
    valid = mask[:, None] & (f < F)[None, :]
    scale, resolution, first, entries, hashed = _level(scales, geometry, level)
    i, j, k, fx, fy, fz, u, v, w = _locate(x, direction, at, mask, scale, ALONG)
    grads = tl.load(grad + (level * F + f[None, :]).to(tl.int64) * n + at[:, None], mask=valid, other=0.0)
    for corner in tl.static_range(8):
        row = (first + _row(i, j, k, corner, resolution, entries, hashed)).to(tl.int64)
        weight = _weight(fx, fy, fz, u, v, w, corner, ALONG)
        tl.atomic_add(out + row[:, None] * F + f[None, :], weight[:, None] * grads, mask=valid, sem="relaxed")


@triton.jit
def _position_gradient(x, table, grad, out, scales, geometry, n, levels, F: tl.constexpr, PAIRS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    f = tl.arange(0, PAIRS)
    mask = at < n
    valid = mask[:, None] & (f < F)[None, :]
    gx, gy, gz = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for level in range(levels):
        scale, resolution, first, entries, hashed = _level(scales, geometry, level)
        i, j, k, fx, fy, fz, u, v, w = _locate(x, x, at, mask, scale, False)
        grads = tl.load(grad + (level * F + f[None, :]).to(tl.int64) * n + at[:, None], mask=valid, other=0.0)
        for corner in tl.static_range(8):
            row = (first + _row(i, j, k, corner, resolution, entries, hashed)).to(tl.int64)
            values = tl.load(table + row[:, None] * F + f[None, :], mask=valid, other=0.0)
            product = tl.sum(values * grads, axis=1)
            a, b, c = _side(fx, corner & 1), _side(fy, (corner >> 1) & 1), _side(fz, corner >> 2)
            gx += product * _signed(u, corner & 1) * b * c
            gy += product * a * _signed(v, (corner >> 1) & 1) * c
            gz += product * a * b * _signed(w, corner >> 2)
    tl.store(out + at * 3, gx, mask=mask)
    tl.store(out + at * 3 + 1, gy, mask=mask)
    tl.store(out + at * 3 + 2, gz, mask=mask)


# --- tensor interface ------------------------------------------------------------------------------------


def encode(x: Tensor, table: Tensor, levels: Levels, direction: Tensor | None = None) -> Tensor:
    width, along = table.shape[1], direction is not None
    out = x.new_empty(levels.n_levels * width, len(x))
    inputs = x.contiguous(), _rows(x, direction), table.contiguous(), out, *_on_device(levels, x.device), len(x)
    _encode[triton.cdiv(len(x), BLOCK.value), levels.n_levels](*inputs, ALONG=along, **_shape(width))
    return out.t()


def scatter(x: Tensor, grad: Tensor, levels: Levels, direction: Tensor | None = None) -> Tensor:
    width, along = grad.shape[1] // levels.n_levels, direction is not None
    out = x.new_zeros(levels.entries, width)
    inputs = x.contiguous(), _rows(x, direction), grad.t().contiguous(), out, *_on_device(levels, x.device), len(x)
    _scatter[triton.cdiv(len(x), BLOCK.value), levels.n_levels](*inputs, ALONG=along, **_shape(width))
    return out


def position_gradient(x: Tensor, table: Tensor, grad: Tensor, levels: Levels) -> Tensor:
    out = x.new_empty(len(x), 3)
    inputs = x.contiguous(), table.contiguous(), grad.t().contiguous(), out, *_on_device(levels, x.device), len(x)
    _position_gradient[(triton.cdiv(len(x), BLOCK.value),)](*inputs, levels.n_levels, **_shape(table.shape[1]))
    return out


def _shape(width: int) -> dict[str, int]:
    return {"F": width, "PAIRS": triton.next_power_of_2(width)}


def _rows(x: Tensor, direction: Tensor | None) -> Tensor:
    return x if direction is None else direction.contiguous()  # x: a placeholder that the kernel ignores


@lru_cache(maxsize=64)
def _on_device(levels: Levels, device: torch.device) -> tuple[Tensor, Tensor]:
    # cached, since a copy to the GPU synchronises
    columns = levels.resolution, levels.offset[:-1], np.diff(levels.offset), levels.hashed
    geometry = torch.from_numpy(np.stack(columns, axis=1).astype(np.int32))
    return torch.from_numpy(levels.scale).to(device), geometry.to(device)
