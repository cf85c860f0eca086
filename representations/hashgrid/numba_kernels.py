"""Hash grid on CPUs with numba, with float32 and 32-bit integers.

Let T be the table, g the gradient of a loss with respect to the features, and B(x, T, g) the sum of g * encode(x, T). B
is linear in T and in g. Three kernels compute its first derivatives:

    encode(x, T) = dB/dg        scatter(x, g) = dB/dT        position_gradient(x, T, g) = dB/dx

With the argument `direction`, encode and scatter return their derivative along this direction of x: they use the
derivative of the interpolation weights in place of the weights. Only the second derivative with respect to x alone has
no kernel; encoding.py computes it with torch_twin.py, which also defines levels, indices and weights.

Kernels process many points per level, in tiles, so that the level's table stays in the L2 cache. The work is divided
into `shares` equal parts, and one call does part number `share`. Each output element has one writer with a fixed order
of additions, so results do not depend on the number of shares.

Arrays, for N points and L levels with F features per entry: x and direction (3, N) float32, direction (3, 0) if there
is none; features and their gradients (L*F, N); table (entries * F,); `features`, a tuple of F zeros, whose length is a
compile-time constant. Per level: scale (L,) float32, cells per unit length; resolution (L,) int32, grid points per
axis; offset (L+1,) int64, first table entry of each level, then the number of all entries; hashed (L,) bool.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .torch_twin import Levels

TILE = 128  # points per tile: 11 KB, fits into the L1 cache
BLOCK = 64 * TILE  # points per task

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_PRIME_Y, _PRIME_Z = np.uint32(2654435761).astype(np.int32), np.int32(805459861)  # two's complement


@njit(cache=True)
def _locate(x, start, count, scale, cell, fraction, speed):
    # writes cell, position in the cell and d(position)/dx, (3, count) each, of `count` points from index `start` on
    for axis in range(3):
        coordinates, cells, fractions = x[axis, start : start + count], cell[axis], fraction[axis]
        for i in range(count):
            inside = min(coordinates[i], _ONE) if coordinates[i] > _ZERO else _ZERO
            position = inside * scale + _HALF
            floor = np.int32(position)
            cells[i] = floor
            fractions[i] = position - np.float32(floor)
            speed[axis, i] = scale if coordinates[i] >= _ZERO and coordinates[i] <= _ONE else _ZERO


@njit(cache=True)
def _corners(cell, count, resolution, entries, hashed, rows):
    # Writes the rows (8, count) of the cells' corners in the level's table. Corner k has the x offset k & 1. A hashed
    # level has a power of two rows, so modulo is a mask. A dense index is below twice the number of rows, so one
    # subtraction is enough.
    if hashed:
        mask = np.int32(entries - 1)
        for i in range(count):
            x, y, z = cell[0, i], np.int32(cell[1, i] * _PRIME_Y), np.int32(cell[2, i] * _PRIME_Z)
            x1, y1, z1 = np.int32(x + 1), np.int32(y + _PRIME_Y), np.int32(z + _PRIME_Z)
            rows[0, i], rows[1, i] = (x ^ y ^ z) & mask, (x1 ^ y ^ z) & mask
            rows[2, i], rows[3, i] = (x ^ y1 ^ z) & mask, (x1 ^ y1 ^ z) & mask
            rows[4, i], rows[5, i] = (x ^ y ^ z1) & mask, (x1 ^ y ^ z1) & mask
            rows[6, i], rows[7, i] = (x ^ y1 ^ z1) & mask, (x1 ^ y1 ^ z1) & mask
    else:
        for i in range(count):
            first = np.int32(cell[0, i] + resolution * np.int32(cell[1, i] + resolution * cell[2, i]))
            for corner in range(8):
                step = (corner & 1) + resolution * ((corner >> 1 & 1) + resolution * (corner >> 2))
                row = np.int32(first + np.int32(step))
                rows[corner, i] = row - entries if row >= entries else row


@njit(cache=True)
def _weigh(fraction, count, weights):
    for i in range(count):
        x, y, z = fraction[0, i], fraction[1, i], fraction[2, i]
        a, b, c, d = (_ONE - y) * (_ONE - z), y * (_ONE - z), (_ONE - y) * z, y * z
        weights[0, i], weights[1, i] = (_ONE - x) * a, x * a
        weights[2, i], weights[3, i] = (_ONE - x) * b, x * b
        weights[4, i], weights[5, i] = (_ONE - x) * c, x * c
        weights[6, i], weights[7, i] = (_ONE - x) * d, x * d


@njit(cache=True)
def _weigh_along(direction, start, fraction, speed, count, weights):
    along_x, along_y, along_z = direction[0, start:], direction[1, start:], direction[2, start:]
    for i in range(count):
        x, y, z = fraction[0, i], fraction[1, i], fraction[2, i]
        u, v, w = along_x[i] * speed[0, i], along_y[i] * speed[1, i], along_z[i] * speed[2, i]
        a, b, c, d = (_ONE - y) * (_ONE - z), y * (_ONE - z), (_ONE - y) * z, y * z
        da, db = -v * (_ONE - z) - w * (_ONE - y), v * (_ONE - z) - w * y
        dc, dd = w * (_ONE - y) - v * z, v * z + w * y
        weights[0, i], weights[1, i] = (_ONE - x) * da - u * a, x * da + u * a
        weights[2, i], weights[3, i] = (_ONE - x) * db - u * b, x * db + u * b
        weights[4, i], weights[5, i] = (_ONE - x) * dc - u * c, x * dc + u * c
        weights[6, i], weights[7, i] = (_ONE - x) * dd - u * d, x * dd + u * d


@njit(cache=True)
def _prepare(x, direction, start, count, scale, resolution, entries, hashed, scratch):
    cell, fraction, speed, rows, weights = scratch
    _locate(x, start, count, scale, cell, fraction, speed)
    _corners(cell, count, resolution, entries, hashed, rows)
    if direction.shape[1] > 0:
        _weigh_along(direction, start, fraction, speed, count, weights)
    else:
        _weigh(fraction, count, weights)


@njit
def _scratch():
    # for one tile: cell, fraction, speed, rows, and weights (or products)
    threes = np.empty((3, TILE), np.int32), np.empty((3, TILE), np.float32), np.empty((3, TILE), np.float32)
    return (*threes, np.empty((8, TILE), np.uint32), np.empty((8, TILE), np.float32))


@njit
def _level_of(task, n_levels):
    # cheap coarse and costly fine levels alternate, so that the shares are equal
    return task // 2 if task % 2 == 0 else n_levels - 1 - task // 2


@njit(cache=True)
def _gather(table, rows, weights, count, features, out, start):
    # out[f, i] = sum over corners of weight * table[row, f], two features at a time (an odd last one twice)
    n = np.uint32(len(features))
    for f in range(0, len(features), 2):
        pair = np.uint32(f + 1 < len(features))
        low, high = out[f, start : start + count], out[f + pair, start : start + count]
        for i in range(count):
            a = b = _ZERO
            for corner in range(8):
                at = rows[corner, i] * n + np.uint32(f)
                a += weights[corner, i] * table[at]
                b += weights[corner, i] * table[at + pair]
            low[i] = a
            high[i] = b


@njit(cache=True)
def _add(table, rows, weights, count, features, grad, start):
    # adds weight * grad[f, i] to table[row, f] for all corners, two features at a time
    n = np.uint32(len(features))
    for f in range(0, len(features), 2):
        pair = np.uint32(f + 1 < len(features))
        low, high = grad[f, start : start + count], grad[f + pair, start : start + count]
        for i in range(count):
            a, b = low[i], high[i]
            for corner in range(8):
                at, weight = rows[corner, i] * n + np.uint32(f), weights[corner, i]
                c, d = table[at] + weight * a, table[at + pair] + weight * b
                table[at] = c
                table[at + pair] = d


@njit(cache=True)
def _multiply(table, rows, grad, start, count, features, products):
    # products (8, count): dot products of the features' gradient and the table rows of the corners
    n = np.uint32(len(features))
    grad = grad[:, start : start + count]
    for i in range(count):
        for corner in range(8):
            total = _ZERO
            for f in range(len(features)):
                total += grad[f, i] * table[rows[corner, i] * n + np.uint32(f)]
            products[corner, i] = total


@njit(cache=True)
def _slope(products, fraction, speed, count, out, start):
    # adds the derivative with respect to x of the trilinear interpolation of `products` to out (3, N)
    out_x, out_y, out_z = out[0, start:], out[1, start:], out[2, start:]
    p = products
    for i in range(count):
        x, y, z = fraction[0, i], fraction[1, i], fraction[2, i]
        a, b, c, d = p[1, i] - p[0, i], p[3, i] - p[2, i], p[5, i] - p[4, i], p[7, i] - p[6, i]
        out_x[i] += speed[0, i] * ((a * (_ONE - y) + b * y) * (_ONE - z) + (c * (_ONE - y) + d * y) * z)
        e, f, g, h = p[0, i] + x * a, p[2, i] + x * b, p[4, i] + x * c, p[6, i] + x * d
        out_y[i] += speed[1, i] * ((f - e) * (_ONE - z) + (h - g) * z)
        out_z[i] += speed[2, i] * ((g - e) * (_ONE - y) + (h - f) * y)


@njit(cache=True, nogil=True)
def _encode(share, shares, x, direction, table, scale, resolution, offset, hashed, features, out):
    n_points, n_levels, n = x.shape[1], scale.shape[0], len(features)
    n_blocks = (n_points + BLOCK - 1) // BLOCK
    tasks = n_levels * n_blocks
    scratch = _scratch()
    for task in range(tasks * share // shares, tasks * (share + 1) // shares):
        level, first = _level_of(task // n_blocks, n_levels), task % n_blocks * BLOCK
        part = table[offset[level] * n : offset[level + 1] * n]
        entries = np.int32(offset[level + 1] - offset[level])
        s, r, h = scale[level], resolution[level], hashed[level]
        for start in range(first, min(first + BLOCK, n_points), TILE):
            count = min(TILE, n_points - start)
            _prepare(x, direction, start, count, s, r, entries, h, scratch)
            _gather(part, scratch[3], scratch[4], count, features, out[level * n : (level + 1) * n], start)


@njit(cache=True, nogil=True)
def _scatter(share, shares, x, direction, grad, scale, resolution, offset, hashed, features, out):
    # writes the table's gradient to out (entries * F,); one share does whole levels
    n_points, n_levels, n = x.shape[1], scale.shape[0], len(features)
    scratch = _scratch()
    for task in range(n_levels * share // shares, n_levels * (share + 1) // shares):
        level = _level_of(task, n_levels)
        part = out[offset[level] * n : offset[level + 1] * n]
        entries = np.int32(offset[level + 1] - offset[level])
        s, r, h = scale[level], resolution[level], hashed[level]
        part[:] = _ZERO
        for start in range(0, n_points, TILE):
            count = min(TILE, n_points - start)
            _prepare(x, direction, start, count, s, r, entries, h, scratch)
            _add(part, scratch[3], scratch[4], count, features, grad[level * n : (level + 1) * n], start)


@njit(cache=True, nogil=True)
def _position_gradient(share, shares, x, table, grad, scale, resolution, offset, hashed, features, out):
    n_points, n_levels, n = x.shape[1], scale.shape[0], len(features)
    n_blocks = (n_points + BLOCK - 1) // BLOCK
    cell, fraction, speed, rows, products = _scratch()
    for block in range(n_blocks * share // shares, n_blocks * (share + 1) // shares):
        first, last = block * BLOCK, min((block + 1) * BLOCK, n_points)
        out[:, first:last] = _ZERO
        for level in range(n_levels):
            part = table[offset[level] * n : offset[level + 1] * n]
            entries = np.int32(offset[level + 1] - offset[level])
            for start in range(first, last, TILE):
                count = min(TILE, last - start)
                _locate(x, start, count, scale[level], cell, fraction, speed)
                _corners(cell, count, resolution[level], entries, hashed[level], rows)
                _multiply(part, rows, grad[level * n : (level + 1) * n], start, count, features, products)
                _slope(products, fraction, speed, count, out, start)


def run_in_threads(kernel: Callable[..., None], n_points: int, *arguments: object) -> None:
    """Run a numba kernel on n_points points in parallel threads.

    The work is divided into `shares` parts, one per thread, and kernel(k, shares, *arguments) does part k. The kernel
    takes the points from the arrays in `arguments`; `n_points` only limits the number of threads. This number is that
    of torch, reduced if a thread would get fewer than BLOCK (8192) points.

    The kernels release the GIL, so Python threads run in parallel. numba's parallel loops are not used: they take twice
    as long to compile, and their thread pools crash a process that forks.
    """
    shares = max(1, min(torch.get_num_threads(), n_points // BLOCK))
    if shares == 1:
        kernel(0, 1, *arguments)
        return
    with ThreadPoolExecutor(shares - 1) as pool:
        others = [pool.submit(kernel, share, shares, *arguments) for share in range(1, shares)]
        kernel(0, shares, *arguments)
    for other in others:
        other.result()


# --- tensor interface: features (N, L*F) have the memory order of (L*F, N), which also suits matrix products ---


def encode(x: Tensor, table: Tensor, levels: Levels, direction: Tensor | None = None) -> Tensor:
    out = torch.empty(levels.n_levels * table.shape[1], len(x))
    _run(_encode, levels, table.shape[1], out, _columns(x), _columns(direction), _flat(table))
    return out.t()


def scatter(x: Tensor, grad: Tensor, levels: Levels, direction: Tensor | None = None) -> Tensor:
    n_features = grad.shape[1] // levels.n_levels
    out = torch.empty(levels.entries * n_features)
    _run(_scatter, levels, n_features, out, _columns(x), _columns(direction), _columns(grad))
    return out.view(-1, n_features)


def position_gradient(x: Tensor, table: Tensor, grad: Tensor, levels: Levels) -> Tensor:
    out = torch.empty(3, len(x))
    _run(_position_gradient, levels, table.shape[1], out, _columns(x), _flat(table), _columns(grad))
    return out.t()


def _run(kernel: Callable[..., None], levels: Levels, n_features: int, out: Tensor, *arrays: np.ndarray) -> None:
    geometry = levels.scale, levels.resolution, levels.offset, levels.hashed, (0,) * n_features
    run_in_threads(kernel, arrays[0].shape[1], *arrays, *geometry, out.numpy())


def _columns(rows: Tensor | None) -> np.ndarray:
    # rows (N, C) as a contiguous array (C, N), if possible without a copy; None: an array (3, 0)
    return np.empty((3, 0), np.float32) if rows is None else rows.detach().t().contiguous().numpy()


def _flat(table: Tensor) -> np.ndarray:
    return table.detach().reshape(-1).numpy()
