"""numba back end of marching and compositing, for CPUs.

The kernels run in parallel over rays. Each output element has one writer and sums run in sample order, so results do
not depend on the number of threads. Random numbers are arguments. The kernels do not use fastmath, because the marcher
must round as the torch back end does.

Arrays in the kernels: o, d (R, 3) ray origins and directions; span (R, 3) first sample, exit and step of each ray
(`torch_twin.spans`); cells: flat occupancy grid with `size` cells per axis, 0 for no grid; scale: cells per world unit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from threedgen.representations.options import MarchConfig

from . import Samples, torch_twin
from .autograd import differentiable

F, N = np.float32, np.int32  # a plain Python number would promote to 64 bits
HALF, ZERO, ONE = F(0.5), F(0.0), F(1.0)
MAX_STEPS = 2**30


def march(
    origins: Tensor, directions: Tensor, options: MarchConfig, grid: Tensor | None, jitter: Tensor | None
) -> Samples:
    """Place samples on R rays, as `march.march` does: first count the samples of each ray, then write them."""
    spans = torch_twin.spans(origins, directions, options, jitter)
    limit = torch_twin.max_samples_per_ray(*spans, options)
    size = 0 if grid is None else grid.shape[0]
    cells = np.ones(1, np.bool_) if grid is None else _array(grid).reshape(-1)
    rays = (*(_array(a) for a in (origins, directions)), _array(torch.stack(spans, dim=1)))
    inputs: Any = (*rays, cells, size, F(size / (2 * options.radius)), F(options.radius))
    first, last = np.empty(len(origins), np.int32), np.empty(len(origins), np.int32)
    count = np.empty(len(origins), np.int64)
    _count(*inputs, _array(limit.int()), first, last, count)  # type: ignore[call-arg]
    start = np.cumsum(count) - count
    n = int(count.sum())
    ray_index, t_start, t_end = np.empty(n, np.int64), np.empty(n, np.float32), np.empty(n, np.float32)
    _fill(*inputs, first, last, start, ray_index, t_start, t_end)  # type: ignore[call-arg]
    return Samples(*(torch.from_numpy(a) for a in (ray_index, t_start, t_end, start, count)))


@njit(cache=True, error_model="numpy", inline="always")
def _middle(span, r, k):
    """Return the distance of the midpoint of sample k of ray r."""
    return HALF * ((span[r, 0] + F(k) * span[r, 2]) + (span[r, 0] + F(k + 1) * span[r, 2]))


@njit(cache=True, error_model="numpy", inline="always")
def _cell(o, d, t, scale, radius, size):
    """Return the grid index along one axis of the point o + t d."""
    return min(max(N((o + t * d + radius) * scale), N(0)), N(size - 1))


@njit(cache=True, error_model="numpy", inline="always")
def _occupied(o, d, r, t, cells, scale, radius, size):
    """Return whether ray r is in an occupied cell at distance t."""
    i = _cell(o[r, 0], d[r, 0], t, scale, radius, size)
    j = _cell(o[r, 1], d[r, 1], t, scale, radius, size)
    m = _cell(o[r, 2], d[r, 2], t, scale, radius, size)
    return cells[(i * N(size) + j) * N(size) + m]


@njit(cache=True, error_model="numpy", parallel=True)
def _count(o, d, span, cells, size, scale, radius, limit, first, last, count):
    """Write, per ray, the number of samples and the step numbers of the first and the last sample.

    A loop without branches tests every step. At 2 ns per step it is faster than cell traversal (DDA) with its branch
    mispredictions, even for 512 steps through 32 cells.
    """
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
    """Write the samples of each ray, beginning at index start[r]."""
    for r in prange(o.shape[0]):
        n = start[r]
        for k in range(first[r], last[r] + 1):
            if size > 0 and not _occupied(o, d, r, _middle(span, r, k), cells, scale, radius, size):
                continue
            ray_index[n], t_start[n] = r, span[r, 0] + F(k) * span[r, 2]
            t_end[n] = span[r, 0] + F(k + 1) * span[r, 2]
            n += 1


@njit(cache=True, error_model="numpy", parallel=True)
def _positions(o, d, t_start, t_end, start, count, out):
    for r in prange(start.shape[0]):
        for i in range(start[r], start[r] + count[r]):
            t = HALF * (t_start[i] + t_end[i])
            for c in range(3):
                out[i, c] = o[r, c] + t * d[r, c]


def positions(samples: Samples, origins: Tensor, directions: Tensor) -> Tensor:
    """Return world points (N, 3) at the midpoints, for ray origins and unit directions (R, 3)."""
    out = torch.empty(len(samples), 3)
    _positions(_array(origins), _array(directions), *(_array(a) for a in samples.intervals()), out.numpy())  # type: ignore[call-arg]
    return out


@njit(cache=True, error_model="numpy", parallel=True)
def _visible(sigma, t_start, t_end, start, count, alpha_threshold, early_stop, keep):
    for r in prange(start.shape[0]):
        T = 1.0
        for i in range(start[r], start[r] + count[r]):
            one_minus_alpha = np.exp(-sigma[i] * (t_end[i] - t_start[i]))
            keep[i] = T >= early_stop and ONE - one_minus_alpha >= alpha_threshold
            T *= one_minus_alpha


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float) -> Tensor:
    """Return the bool mask (N,) of samples whose alpha and transmittance reach the thresholds (`march.visible`)."""
    keep = np.empty(len(samples), np.bool_)
    _visible(_array(sigma), *(_array(a) for a in samples.intervals()), F(alpha_threshold), F(early_stop), keep)  # type: ignore[call-arg]
    return torch.from_numpy(keep)


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


@njit(cache=True, error_model="numpy", parallel=True)
def _forward(sigma, values, t_start, t_end, start, count, weights, transmittance, total, opacity, depth):
    """Composite the samples of each ray. Also write the transmittance (N,) behind each sample for the backward pass."""
    channels = values.shape[1]
    for r in prange(start.shape[0]):
        T, alpha_sum, t_sum = 1.0, 0.0, 0.0
        for c in range(channels):
            total[r, c] = ZERO
        for i in range(start[r], start[r] + count[r]):
            one_minus_alpha = np.exp(-sigma[i] * (t_end[i] - t_start[i]))
            w = F(T * (ONE - one_minus_alpha))
            T *= float(one_minus_alpha)
            weights[i] = w
            transmittance[i] = T
            alpha_sum += float(w)
            t_sum += w * HALF * (t_start[i] + t_end[i])
            for c in range(channels):
                total[r, c] += w * values[i, c]
        opacity[r, 0] = alpha_sum
        depth[r, 0] = t_sum


@njit(cache=True, error_model="numpy", parallel=True)
def _backward(grads, values, t_start, t_end, start, count, weights, transmittance, g_sigma, g_values):
    """Backpropagate: d w_j / d sigma_i = dt_i T_(i+1) for j = i, -dt_i w_j for j > i; sums run from the last sample on.

    `grads` holds the gradients of values, opacity, depth and weights. The gradient of the weights has length 0 if the
    loss does not depend on them. g_values has length 0 if the values need no gradient.
    """
    g_total, g_opacity, g_depth, g_weights = grads
    channels = values.shape[1]
    for r in prange(start.shape[0]):
        suffix_sum = 0.0
        for i in range(start[r] + count[r] - 1, start[r] - 1, -1):
            g = g_opacity[r, 0] + g_depth[r, 0] * HALF * (t_start[i] + t_end[i])
            if g_weights.shape[0] > 0:
                g += g_weights[i]
            for c in range(channels):
                g += g_total[r, c] * values[i, c]
            g_sigma[i] = (t_end[i] - t_start[i]) * (transmittance[i] * g - suffix_sum)
            suffix_sum += weights[i] * g
            if g_values.shape[0] > 0:
                for c in range(channels):
                    g_values[i, c] = weights[i] * g_total[r, c]


def forward(sigma: Tensor, values: Tensor, *samples: Tensor) -> tuple[Tensor, ...]:
    """Run the forward kernel: return values, opacity, depth, weights and transmittance, see `autograd.Forward`."""
    rays, channels = len(samples[2]), values.shape[1]
    out = torch.empty(rays, channels), torch.empty(rays, 1), torch.empty(rays, 1)
    weights, transmittance = torch.empty_like(sigma), torch.empty_like(sigma)
    _forward(*(_array(a) for a in (sigma, values, *samples, weights, transmittance, *out)))
    return *out, weights, transmittance


def backward(
    grads: Sequence[Tensor | None], saved: Sequence[Tensor], values_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Run the backward kernel: return the gradients of sigma (N,) and values (N, C), see `autograd.Backward`."""
    sigma, values = saved[:2]
    g_sigma, g_values = torch.empty_like(sigma), torch.empty(values.shape if values_grad else (0, values.shape[1]))
    arrays = tuple(np.empty(0, np.float32) if grad is None else _array(grad) for grad in grads)
    _backward(arrays, *(_array(a) for a in (*saved[1:], g_sigma, g_values)))
    return g_sigma, g_values if values_grad else None


composite = differentiable(forward, backward)
