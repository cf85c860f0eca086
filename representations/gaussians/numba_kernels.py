"""Compositing of 3D Gaussians on CPUs with numba.

The kernels run in parallel over tiles of ROWS x LANES pixels. A Gaussian is evaluated in the rows of a tile that it
reaches, one row at a time with vector instructions. Each output element has one writer and sums run in a fixed order,
so results do not depend on the number of threads.

LLVM vectorises only loops over one array with constant offsets. Therefore each of the ROWS rows of the array `pixels`
(ROWS, C * LANES) has all numbers of one row of LANES pixels, with C numbers per pixel, such as its transmittance:
number c of the pixel in column `lane` is at c * LANES + lane.
"""

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ALPHA_THRESHOLD, CHANNELS, MAX_ALPHA, TRANSMITTANCE_THRESHOLD, ProjectedSplats

F, N = np.float32, np.int32  # a plain Python number would promote to 64 bits
ROWS, LANES = 16, 8
STATE = (3 + CHANNELS) * LANES
"""Number of floats per row of pixels: 3 + CHANNELS quantities for each of its LANES pixels.

After the forward pass, they are the transmittance, a flag (1 if further Gaussians can contribute, else 0), the index of
the last Gaussian that contributes, and the composited values. In the backward pass, gradients of the loss replace the
composited values. The flag is replaced by the sum of weight * value * gradient over the Gaussians behind, plus the term
of the opacity.
"""
LIVE, LAST, V0, V1, V2, V3, V4 = (k * LANES for k in range(1, 8))
"""First column, in a row of pixels, of the flag, of the index and of each value that `STATE` describes."""
G_SIGMA, G_DY, G_DY2, G0, G1, G2, G3, G4 = (STATE + k * LANES for k in range(8))
"""Backward pass: first column of each gradient with respect to one Gaussian, per pixel, after the state of a row."""
ZERO, HALF, ONE = F(0.0), F(0.5), F(1.0)
MIN_ALPHA, TOP, STOP = F(ALPHA_THRESHOLD), F(MAX_ALPHA), F(TRANSMITTANCE_THRESHOLD)
LOG2_E, LN_2, FARTHEST, BIAS, SHIFT = F(1.4426950408889634), F(0.6931471805599453), F(20.0), F(127.0), F(2.0**23)
C2, C3, C4, C5, C6 = (F(1 / factorial) for factorial in (2, 6, 24, 120, 720))
CHECK = 16  # number of Gaussians between two tests whether all pixels of a tile are opaque
LINEAR = {"contract"}  # fused multiply-add; no other change of the arithmetic


@njit(cache=True, error_model="numpy", fastmath=LINEAR)
def _falloff(dx, dy, a, b, c):
    # exp(-sigma) with a relative error of 3e-7, without a call, so that the loops over lanes are vectorised
    sigma = HALF * (a * dx * dx + c * dy * dy) + b * dx * dy
    x = -min(max(sigma, ZERO), FARTHEST)
    power = np.floor(x * LOG2_E + HALF)
    t = x - power * LN_2
    series = (((((C6 * t + C5) * t + C4) * t + C3) * t + C2) * t + ONE) * t + ONE
    return series * N((power + BIAS) * SHIFT).view(np.float32)


@njit(cache=True, error_model="numpy", fastmath=LINEAR)
def _blend(pixels, r, x, dy, a, b, c, o, k, v0, v1, v2, v3, v4):
    # adds Gaussian k of the tile to a row of pixels
    for lane in range(LANES):
        alpha = min(TOP, o * _falloff(F(lane) - x, dy, a, b, c))
        before, live = pixels[r, lane], pixels[r, LIVE + lane]
        after = before * (ONE - alpha)
        hit = alpha >= MIN_ALPHA
        live = ZERO if hit and after <= STOP else live
        used = hit and live > ZERO
        weight = alpha * before if used else ZERO
        pixels[r, lane] = after if used else before
        pixels[r, LIVE + lane] = live
        pixels[r, LAST + lane] = k if used else pixels[r, LAST + lane]
        pixels[r, V0 + lane] += weight * v0
        pixels[r, V1 + lane] += weight * v1
        pixels[r, V2 + lane] += weight * v2
        pixels[r, V3 + lane] += weight * v3
        pixels[r, V4 + lane] += weight * v4


@njit(cache=True, error_model="numpy", fastmath=LINEAR)
def _unblend(pixels, r, x, dy, a, b, c, o, k, v0, v1, v2, v3, v4):
    # removes Gaussian k from a row of pixels; writes its gradients per pixel behind the row's state: gradient of sigma,
    # this times dy, this times dy^2, gradients of the values
    for lane in range(LANES):
        raw = o * _falloff(F(lane) - x, dy, a, b, c)
        used = raw >= MIN_ALPHA and k <= pixels[r, LAST + lane]
        alpha = min(TOP, raw) if used else ZERO
        inverse = ONE / (ONE - alpha)
        before, behind = pixels[r, lane] * inverse, pixels[r, LIVE + lane]
        weight = alpha * before
        g0, g1, g2 = pixels[r, V0 + lane], pixels[r, V1 + lane], pixels[r, V2 + lane]
        g3, g4 = pixels[r, V3 + lane], pixels[r, V4 + lane]
        light = v0 * g0 + v1 * g1 + v2 * g2 + v3 * g3 + v4 * g4
        g_sigma = -raw * (before * light - behind * inverse) if used and raw < TOP else ZERO
        pixels[r, lane] = before
        pixels[r, LIVE + lane] = behind + weight * light
        pixels[r, G_SIGMA + lane] = g_sigma
        pixels[r, G_DY + lane] = g_sigma * dy
        pixels[r, G_DY2 + lane] = g_sigma * dy * dy
        pixels[r, G0 + lane] = weight * g0
        pixels[r, G1 + lane] = weight * g1
        pixels[r, G2 + lane] = weight * g2
        pixels[r, G3 + lane] = weight * g3
        pixels[r, G4 + lane] = weight * g4


@njit(cache=True, error_model="numpy")
def _span(middle, extent, first, size):
    # start and end, relative to `first`, of the pixels first ... first + size - 1 with centres within middle +- extent
    low = np.ceil(middle - extent - HALF) - F(first)
    high = np.floor(middle + extent - HALF) - F(first)
    return N(min(max(low, ZERO), F(size))), N(max(min(high, F(size - 1)), -ONE)) + 1


@njit(cache=True, error_model="numpy", parallel=True)
def _fill(order, means, extents, width, height, cursor, entries):
    # Writes the Gaussians of each tile (V, rows, columns) in depth order to `entries`, from index cursor[tile] on, and
    # advances the cursor. If `entries` is empty, only the cursor is advanced, to count the Gaussians.
    for v in prange(means.shape[0]):
        for k in range(order.shape[1]):
            g = order[v, k]
            x0, x1 = _span(means[v, g, 0], extents[v, g, 0], 0, width)
            y0, y1 = _span(means[v, g, 1], extents[v, g, 1], 0, height)
            if extents[v, g, 0] > ZERO and x0 < x1 and y0 < y1:
                for row in range(y0 // ROWS, (y1 - 1) // ROWS + 1):
                    for column in range(x0 // LANES, (x1 - 1) // LANES + 1):
                        if len(entries):
                            entries[cursor[v, row, column]] = g
                        cursor[v, row, column] += 1


@njit(cache=True, error_model="numpy", parallel=True)
def _forward(start, entries, means, conics, opacities, values, extents, rows, columns, states):
    # states (tiles, ROWS, STATE)
    for tile in prange(start.shape[0] - 1):
        v, row, column = tile // (rows * columns), tile // columns % rows, tile % columns
        pixels = np.zeros((ROWS, STATE), F)
        pixels[:, : 2 * LANES] = ONE
        pixels[:, 2 * LANES : 3 * LANES] = -ONE
        for k in range(start[tile], start[tile + 1]):
            if (k - start[tile]) % CHECK == CHECK - 1 and pixels[:, LANES : 2 * LANES].max() == ZERO:
                break
            g, index = entries[k], F(k - start[tile])
            a, b, c, o = conics[v, g, 0], conics[v, g, 1], conics[v, g, 2], opacities[v, g]
            x, y = means[v, g, 0] - F(column * LANES) - HALF, means[v, g, 1] - F(row * ROWS) - HALF
            v0, v1, v2, v3, v4 = values[v, g, 0], values[v, g, 1], values[v, g, 2], values[v, g, 3], values[v, g, 4]
            r0, r1 = _span(means[v, g, 1], extents[v, g, 1], row * ROWS, ROWS)
            for r in range(r0, r1):
                _blend(pixels, r, x, F(r) - y, a, b, c, o, index, v0, v1, v2, v3, v4)
        states[tile] = pixels


@njit(cache=True, error_model="numpy", parallel=True)
def _backward(start, entries, means, conics, opacities, values, extents, rows, columns, states, g_entries):
    # from the last Gaussian of each tile to the first; g_entries (E, 6 + CHANNELS): gradients of mean, conic, opacity
    # and values of each entry
    for tile in prange(start.shape[0] - 1):
        v, row, column = tile // (rows * columns), tile // columns % rows, tile % columns
        pixels, sums = np.zeros((ROWS, 2 * STATE), F), np.zeros(STATE, F)
        pixels[:, :STATE] = states[tile]
        for k in range(start[tile + 1] - 1, start[tile] - 1, -1):
            g, index = entries[k], F(k - start[tile])
            a, b, c, o = conics[v, g, 0], conics[v, g, 1], conics[v, g, 2], opacities[v, g]
            x, y = means[v, g, 0] - F(column * LANES) - HALF, means[v, g, 1] - F(row * ROWS) - HALF
            v0, v1, v2, v3, v4 = values[v, g, 0], values[v, g, 1], values[v, g, 2], values[v, g, 3], values[v, g, 4]
            sums[:] = ZERO
            r0, r1 = _span(means[v, g, 1], extents[v, g, 1], row * ROWS, ROWS)
            for r in range(r0, r1):
                _unblend(pixels, r, x, F(r) - y, a, b, c, o, index, v0, v1, v2, v3, v4)
                for j in range(STATE):
                    sums[j] += pixels[r, STATE + j]
            for j in range(6 + CHANNELS):
                g_entries[k, j] = ZERO
            for lane in range(LANES):
                dx, s = F(lane) - x, sums[lane]
                g_entries[k, 0] -= a * s * dx + b * sums[LANES + lane]
                g_entries[k, 1] -= b * s * dx + c * sums[LANES + lane]
                g_entries[k, 2] += HALF * s * dx * dx
                g_entries[k, 3] += sums[LANES + lane] * dx
                g_entries[k, 4] += HALF * sums[2 * LANES + lane]
                g_entries[k, 5] -= s / o
                for channel in range(CHANNELS):
                    g_entries[k, 6 + channel] += sums[(3 + channel) * LANES + lane]


@njit(cache=True, error_model="numpy", parallel=True)
def _gather(start, entries, g_entries, gradients):
    # sums of the entries' gradients per Gaussian, (V, N, 6 + CHANNELS)
    tiles = (start.shape[0] - 1) // gradients.shape[0]
    for v in prange(gradients.shape[0]):
        for k in range(start[v * tiles], start[(v + 1) * tiles]):
            for column in range(gradients.shape[2]):
                gradients[v, entries[k], column] += g_entries[k, column]


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def _entries(means: Any, depths: Any, extents: Any, width: int, height: int) -> tuple[Any, Any]:
    # Gaussians of all tiles, in depth order per tile, and the index of each tile's first entry, then the total number
    order = np.argsort(depths, axis=1, kind="stable")
    count = np.zeros((len(means), -(-height // ROWS), -(-width // LANES)), np.int64)
    inputs: Any = (order, means, extents, width, height)
    _fill(*inputs, count, np.empty(0, np.int32))  # type: ignore[call-arg]
    start = np.concatenate([[0], count.reshape(-1).cumsum()])
    cursor, entries = start[:-1].reshape(count.shape).copy(), np.empty(start[-1], np.int32)
    _fill(*inputs, cursor, entries)  # type: ignore[call-arg]
    return entries, start


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, height, width = inputs
        means, conics, opacities, values, depths, extents = map(_array, tensors)
        entries, start = _entries(means, depths, extents, width, height)
        views, rows, columns = len(means), -(-height // ROWS), -(-width // LANES)
        states = torch.empty(len(start) - 1, ROWS, STATE)
        ctx.arrays = (start, entries, means, conics, opacities, values, extents, rows, columns)
        _forward(*ctx.arrays, states.numpy())  # type: ignore[call-arg]
        ctx.states = states  # no input and no output: save_for_backward is not needed
        tiles = states.view(views, rows, columns, ROWS, -1, LANES).permute(0, 1, 3, 2, 5, 4)
        image = tiles.reshape(views, rows * ROWS, columns * LANES, -1)[:, :height, :width]
        return torch.cat([image[..., 3:], 1 - image[..., :1]], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        start, entries, means, *_, rows, columns = ctx.arrays
        views, height, width, channels = g.shape
        padded = g.new_zeros(views, rows * ROWS, columns * LANES, channels)
        padded[:, :height, :width] = g
        tiles = padded.view(views, rows, ROWS, columns, LANES, channels).permute(0, 1, 3, 2, 5, 4)
        tiles = tiles.reshape(len(start) - 1, ROWS, channels * LANES)
        states = ctx.states.clone()
        states[..., LANES : 2 * LANES] = -states[..., :LANES] * tiles[..., -LANES:]  # opacity = 1 - transmittance
        states[..., 3 * LANES :] = tiles[..., :-LANES]
        g_entries, gradients = torch.empty(len(entries), 6 + CHANNELS), torch.zeros(*means.shape[:2], 6 + CHANNELS)
        _backward(*ctx.arrays, states.numpy(), g_entries.numpy())  # type: ignore[call-arg]
        _gather(start, entries, g_entries.numpy(), gradients.numpy())
        g_means, g_conics, g_opacities, g_values = gradients.split([2, 3, 1, CHANNELS], dim=-1)
        return g_means, g_conics, g_opacities[..., 0], g_values, None, None, None, None


def composite(splats: ProjectedSplats, height: int, width: int) -> Tensor:
    image: Tensor = _Composite.apply(*splats, height, width)
    return image
