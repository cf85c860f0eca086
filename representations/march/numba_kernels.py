"""Ray marching and compositing on CPUs with numba.

The kernels run in parallel over rays. Each output element has one writer and sums run in sample order, so results do
not depend on the number of threads. The kernels do not use fastmath, so that samples are rounded as in torch.

Arguments of the kernels: o, d (R, 3) ray origins and directions; span (R, 3) from `march.spans_of`: start of the first
sample, exit, step; cells: flat occupancy grid with `size` cells per axis (0: no grid); scale: cells per world unit.
"""

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from threedgen.representations.volume.options import MarchConfig

from . import Samples, differentiable, max_samples_per_ray, torch_twin

F, N = np.float32, np.int32  # a plain Python number would promote to 64 bits
HALF, ZERO, ONE = F(0.5), F(0.0), F(1.0)
MAX_STEPS = 2**30


def place(origins: Tensor, directions: Tensor, spans: Tensor, options: MarchConfig, grid: Tensor | None) -> Samples:
    size = 0 if grid is None else grid.shape[0]
    cells = np.ones(1, np.bool_) if grid is None else _array(grid).reshape(-1)
    rays, scale = (_array(a) for a in (origins, directions, spans)), F(size / (2 * options.radius))
    inputs: Any = (*rays, cells, size, scale, F(options.radius))
    first, last = np.empty(len(origins), np.int32), np.empty(len(origins), np.int32)
    count = np.empty(len(origins), np.int64)
    limit = max_samples_per_ray(spans).int()
    _count(*inputs, _array(limit), first, last, count)  # type: ignore[call-arg]
    start = np.cumsum(count) - count
    n = int(count.sum())
    ray_index, t_start, t_end = np.empty(n, np.int64), np.empty(n, np.float32), np.empty(n, np.float32)
    _fill(*inputs, first, last, start, ray_index, t_start, t_end)  # type: ignore[call-arg]
    return Samples(*(torch.from_numpy(a) for a in (ray_index, t_start, t_end, start, count)))


def positions(samples: Samples, origins: Tensor, directions: Tensor) -> Tensor:
    """Return the world positions (N, 3) float32 of the midpoints of N samples.

    Each product and each sum is rounded to float32, as in torch, so that the results are equal to those of torch.

    `origins` (R, 3) and unit `directions` (R, 3) define the R rays on which the samples lie.
    """
    columns = (_array(t) for t in (samples.ray_index, samples.t_start, samples.t_end, origins, directions))
    out = np.empty((len(samples), 3), np.float32)
    _positions(*columns, out)  # type: ignore[call-arg]
    return torch.from_numpy(out)


@njit(cache=True, error_model="numpy", parallel=True)
def _positions(ray_index, t_start, t_end, o, d, out):
    for i in prange(len(ray_index)):
        r, t = ray_index[i], HALF * (t_start[i] + t_end[i])
        out[i, 0], out[i, 1], out[i, 2] = o[r, 0] + t * d[r, 0], o[r, 1] + t * d[r, 1], o[r, 2] + t * d[r, 2]


@njit(cache=True, error_model="numpy", inline="always")
def _middle(span, r, k):
    return HALF * ((span[r, 0] + F(k) * span[r, 2]) + (span[r, 0] + F(k + 1) * span[r, 2]))


@njit(cache=True, error_model="numpy", inline="always")
def _cell(o, d, t, scale, radius, size):
    return min(max(N((o + t * d + radius) * scale), N(0)), N(size - 1))


@njit(cache=True, error_model="numpy", inline="always")
def _occupied(o, d, r, t, cells, scale, radius, size):
    i = _cell(o[r, 0], d[r, 0], t, scale, radius, size)
    j = _cell(o[r, 1], d[r, 1], t, scale, radius, size)
    m = _cell(o[r, 2], d[r, 2], t, scale, radius, size)
    return cells[(i * N(size) + j) * N(size) + m]


@njit(cache=True, error_model="numpy", parallel=True)
def _count(o, d, span, cells, size, scale, radius, limit, first, last, count):
    # number of samples of each ray, and step numbers of its first and last sample
    for r in prange(o.shape[0]):
        n, low, high = N(0), N(MAX_STEPS), N(-1)
        for k in range(limit[r]):  # vectorised only with 32-bit numbers and reductions
            t = _middle(span, r, k)
            keep = t < span[r, 1]
            if size > 0:
                keep &= _occupied(o, d, r, t, cells, scale, radius, size)
            n += N(keep)
            low = min(low, N(k)) if keep else low
            high = max(high, N(k)) if keep else high
        first[r], last[r], count[r] = low, high, n


@njit(cache=True, error_model="numpy", parallel=True)
def _fill(o, d, span, cells, size, scale, radius, first, last, start, ray_index, t_start, t_end):
    # writes the samples of each ray, beginning at index start[r]
    for r in prange(o.shape[0]):
        n = start[r]
        for k in range(first[r], last[r] + 1):
            if size > 0 and not _occupied(o, d, r, _middle(span, r, k), cells, scale, radius, size):
                continue
            ray_index[n], t_start[n] = r, span[r, 0] + F(k) * span[r, 2]
            t_end[n] = span[r, 0] + F(k + 1) * span[r, 2]
            n += 1


visible = torch_twin.visible


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


@njit(cache=True, error_model="numpy", parallel=True)
def _forward(sigma, values, t_start, t_end, start, count, weights, transmittance, pixels):
    channels = values.shape[1]
    for r in prange(start.shape[0]):
        T, alpha_sum, t_sum = 1.0, 0.0, 0.0
        for c in range(channels):
            pixels[r, c] = ZERO
        for i in range(start[r], start[r] + count[r]):
            one_minus_alpha = np.exp(-sigma[i] * (t_end[i] - t_start[i]))
            w = F(T * (ONE - one_minus_alpha))
            T *= float(one_minus_alpha)
            weights[i] = w
            transmittance[i] = T
            alpha_sum += float(w)
            t_sum += w * HALF * (t_start[i] + t_end[i])
            for c in range(channels):
                pixels[r, c] += w * values[i, c]
        pixels[r, channels], pixels[r, channels + 1] = alpha_sum, t_sum


@njit(cache=True, error_model="numpy", parallel=True)
def _backward(g_pixels, g_weights, values, t_start, t_end, start, count, weights, transmittance, g_sigma, g_values):
    # d w_j / d sigma_i = dt_i T_(i+1) for j = i and -dt_i w_j for j > i, last sample first
    channels = values.shape[1]
    for r in prange(start.shape[0]):
        suffix_sum = 0.0
        for i in range(start[r] + count[r] - 1, start[r] - 1, -1):
            g = g_pixels[r, channels] + g_pixels[r, channels + 1] * HALF * (t_start[i] + t_end[i])
            g += g_weights[i]
            for c in range(channels):
                g += g_pixels[r, c] * values[i, c]
            g_sigma[i] = (t_end[i] - t_start[i]) * (transmittance[i] * g - suffix_sum)
            suffix_sum += weights[i] * g
            for c in range(channels):
                g_values[i, c] = weights[i] * g_pixels[r, c]


def forward(sigma: Tensor, values: Tensor, *samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    pixels = torch.empty(len(samples[2]), values.shape[1] + 2)
    weights, transmittance = torch.empty_like(sigma), torch.empty_like(sigma)
    _forward(*(_array(a) for a in (sigma, values, *samples, weights, transmittance, pixels)))
    return pixels, weights, transmittance


def backward(g_pixels: Tensor, g_weights: Tensor, sigma: Tensor, *saved: Tensor) -> tuple[Tensor, Tensor]:
    g_sigma, g_values = torch.empty_like(sigma), torch.empty_like(saved[0])
    _backward(*(_array(a) for a in (g_pixels, g_weights, *saved, g_sigma, g_values)))
    return g_sigma, g_values


composite = differentiable(forward, backward)
