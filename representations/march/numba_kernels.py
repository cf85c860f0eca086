"""The marcher and the compositor as numba kernels for the CPU.

Parallel over rays; every output element has one writer and sums run in sample order, so the result does not
depend on the number of threads. Random numbers come in as arguments. No fastmath: the marcher must round as
the torch twin does.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import Composite, Samples

F, N = np.float32, np.int32  # a stray Python number would promote to 64 bits
HALF, ZERO, ONE, TINY = F(0.5), F(0.0), F(1.0), F(1e-12)
MOST = 2**30


def march(
    origins: Tensor,
    directions: Tensor,
    *,
    step: float | None,
    samples: int,
    radius: float,
    sphere: bool,
    near: float,
    grid: Tensor | None,
    jitter: Tensor | None,
) -> Samples:
    """Count the samples of each ray, then fill them in; see `march.march`."""
    rays = len(origins)
    o, d = _array(origins), _array(directions)
    size = 0 if grid is None else grid.shape[0]
    cells = np.ones(1, np.bool_) if grid is None else _array(grid).reshape(-1)
    shift = np.zeros(rays, np.float32) if jitter is None else _array(jitter)
    span, count = np.empty((rays, 3), np.float32), np.empty(rays, np.int64)
    first, last = np.empty(rays, np.int32), np.empty(rays, np.int32)
    _chords(o, d, shift, F(radius), sphere, F(near), F(step or 0.0), samples if step is None else 0, span)
    where = (o, d, span, cells, size, F(size / (2 * radius)), F(radius))
    _count(*where, samples if step is None else MOST, first, last, count)
    start = np.cumsum(count) - count
    n = int(count.sum())
    ray_index, t_start, t_end = np.empty(n, np.int64), np.empty(n, np.float32), np.empty(n, np.float32)
    _fill(*where, first, last, start, ray_index, t_start, t_end)
    return Samples(*(torch.from_numpy(a) for a in (ray_index, t_start, t_end, start, count)))


@njit(cache=True, error_model="numpy", inline="always")
def _slab(o, d, radius):
    """Distances at which a coordinate enters and leaves [-radius, radius]."""
    if abs(d) < TINY:
        d = TINY
    first = (-radius - o) / d
    second = (radius - o) / d
    return min(first, second), max(first, second)


@njit(cache=True, error_model="numpy", parallel=True)
def _chords(o, d, shift, radius, sphere, near, step, parts, span):
    """span (R, 3): distance of the first sample, of the exit, and the step; exit < first for a miss."""
    for r in prange(o.shape[0]):
        if sphere:
            along = o[r, 0] * d[r, 0] + o[r, 1] * d[r, 1] + o[r, 2] * d[r, 2]
            x, y, z = o[r, 0] - along * d[r, 0], o[r, 1] - along * d[r, 1], o[r, 2] - along * d[r, 2]
            half = np.sqrt(max(radius * radius - (x * x + y * y + z * z), ZERO))
            enter, leave = -along - half, -along + half
        else:
            x0, x1 = _slab(o[r, 0], d[r, 0], radius)
            y0, y1 = _slab(o[r, 1], d[r, 1], radius)
            z0, z1 = _slab(o[r, 2], d[r, 2], radius)
            enter, leave = max(x0, y0, z0), min(x1, y1, z1)
        enter = max(enter, near)
        size = (leave - enter) / F(parts) if parts > 0 else step
        span[r, 0] = enter + shift[r] * size
        span[r, 1] = leave
        span[r, 2] = size
        if not leave > enter:
            span[r, 0], span[r, 1], span[r, 2] = ONE, ZERO, ONE


@njit(cache=True, error_model="numpy", inline="always")
def _middle(span, r, k):
    """Distance of the midpoint of sample k."""
    return HALF * ((span[r, 0] + F(k) * span[r, 2]) + (span[r, 0] + F(k + 1) * span[r, 2]))


@njit(cache=True, error_model="numpy", inline="always")
def _cell(o, d, t, scale, radius, size):
    """Index of the cell, along one axis, of the point o + t d."""
    return min(max(N((o + t * d + radius) * scale), N(0)), N(size - 1))


@njit(cache=True, error_model="numpy", parallel=True)
def _count(o, d, span, cells, size, scale, radius, limit, first, last, count):
    """How many samples each ray keeps, and the first and last of them.

    Every step is looked up, in a loop without branches: at 2 ns a step that is faster than a walk from cell
    to cell (DDA), whose jumps the processor cannot foresee, even for 512 steps through 32 cells.
    """
    for r in prange(o.shape[0]):
        steps = int((span[r, 1] - span[r, 0]) / span[r, 2]) + 1 if span[r, 1] > span[r, 0] else 0
        n, low, high = N(0), N(MOST), N(-1)
        for k in range(N(min(steps, limit))):  # only 32 bits and reductions make it a vector loop
            t = _middle(span, r, k)
            keep = t < span[r, 1]
            if size > 0:
                i = _cell(o[r, 0], d[r, 0], t, scale, radius, size)
                j = _cell(o[r, 1], d[r, 1], t, scale, radius, size)
                m = _cell(o[r, 2], d[r, 2], t, scale, radius, size)
                keep &= cells[(i * N(size) + j) * N(size) + m]
            n += N(keep)
            low = min(low, N(k)) if keep else low
            high = max(high, N(k)) if keep else high
        first[r], last[r], count[r] = low, high, n


@njit(cache=True, error_model="numpy", parallel=True)
def _fill(o, d, span, cells, size, scale, radius, first, last, start, ray_index, t_start, t_end):
    """Write each ray's samples from its own start."""
    for r in prange(o.shape[0]):
        n = start[r]
        for k in range(first[r], last[r] + 1):
            if size > 0:
                t = _middle(span, r, k)
                i = _cell(o[r, 0], d[r, 0], t, scale, radius, size)
                j = _cell(o[r, 1], d[r, 1], t, scale, radius, size)
                m = _cell(o[r, 2], d[r, 2], t, scale, radius, size)
                if not cells[(i * N(size) + j) * N(size) + m]:
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
    """See `march.Samples.positions`."""
    out = torch.empty(len(samples), 3)
    _positions(_array(origins), _array(directions), *_arrays(samples), out.numpy())
    return out


@njit(cache=True, error_model="numpy", parallel=True)
def _visible(sigma, t_start, t_end, start, count, alpha_threshold, early_stop, keep):
    for r in prange(start.shape[0]):
        light = 1.0
        for i in range(start[r], start[r] + count[r]):
            through = np.exp(-sigma[i] * (t_end[i] - t_start[i]))
            keep[i] = light >= early_stop and ONE - through >= alpha_threshold
            light *= through


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float) -> Tensor:
    """See `march.visible`."""
    keep = np.empty(len(samples), np.bool_)
    _visible(_array(sigma), *_arrays(samples), F(alpha_threshold), F(early_stop), keep)
    return torch.from_numpy(keep)


def _arrays(samples: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """t_start, t_end (N,) float32, start, count (R,) int64 without copies."""
    arrays = (samples.t_start, samples.t_end, samples.start, samples.count)
    first, last, start, count = (_array(a) for a in arrays)
    return first, last, start, count


def _array(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor of the CPU."""
    return tensor.detach().contiguous().numpy()


@njit(cache=True, error_model="numpy", parallel=True)
def _forward(sigma, values, t_start, t_end, start, count, weights, behind, total, opacity, depth):
    """behind (N,): the transmittance after each sample, kept for the backward pass."""
    channels = values.shape[1]
    for r in prange(start.shape[0]):
        light, alpha_sum, t_sum = 1.0, 0.0, 0.0
        for c in range(channels):
            total[r, c] = ZERO
        for i in range(start[r], start[r] + count[r]):
            through = np.exp(-sigma[i] * (t_end[i] - t_start[i]))
            w = F(light * (ONE - through))
            light *= float(through)
            weights[i] = w
            behind[i] = light
            alpha_sum += float(w)
            t_sum += w * HALF * (t_start[i] + t_end[i])
            for c in range(channels):
                total[r, c] += w * values[i, c]
        opacity[r, 0] = alpha_sum
        depth[r, 0] = t_sum


@njit(cache=True, error_model="numpy", parallel=True)
def _backward(
    g_total,
    g_opacity,
    g_depth,
    g_weights,
    values,
    t_start,
    t_end,
    start,
    count,
    weights,
    behind,
    g_sigma,
    g_values,
):
    """d w_j / d sigma_i = dt_i T_(i+1) for j = i and -dt_i w_j for j > i: one walk from the far end, with a
    running sum.

    g_weights has length 0 when nothing depends on the weights; g_values when the values need no gradient.
    """
    channels = values.shape[1]
    for r in prange(start.shape[0]):
        later = 0.0
        for i in range(start[r] + count[r] - 1, start[r] - 1, -1):
            g = g_opacity[r, 0] + g_depth[r, 0] * HALF * (t_start[i] + t_end[i])
            if g_weights.shape[0] > 0:
                g += g_weights[i]
            for c in range(channels):
                g += g_total[r, c] * values[i, c]
            g_sigma[i] = (t_end[i] - t_start[i]) * (behind[i] * g - later)
            later += weights[i] * g
            if g_values.shape[0] > 0:
                for c in range(channels):
                    g_values[i, c] = weights[i] * g_total[r, c]


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sigma, values, t_start, t_end, start, count):
        n, rays, channels = sigma.shape[0], start.shape[0], values.shape[1]
        weights, behind = torch.empty(n), torch.empty(n)
        total, opacity, depth = torch.empty(rays, channels), torch.empty(rays, 1), torch.empty(rays, 1)
        inputs = (sigma, values, t_start, t_end, start, count)
        _forward(*(_array(a) for a in (*inputs, weights, behind, total, opacity, depth)))
        ctx.save_for_backward(values, t_start, t_end, start, count, weights, behind)
        ctx.set_materialize_grads(False)
        return total, opacity, depth, weights

    @staticmethod
    @once_differentiable
    def backward(ctx, g_total, g_opacity, g_depth, g_weights):
        values, t_start, t_end, start, count, weights, behind = ctx.saved_tensors
        rays, channels = start.shape[0], values.shape[1]
        g_total = torch.zeros(rays, channels) if g_total is None else g_total
        g_opacity = torch.zeros(rays, 1) if g_opacity is None else g_opacity
        g_depth = torch.zeros(rays, 1) if g_depth is None else g_depth
        g_weights = torch.empty(0) if g_weights is None else g_weights
        g_sigma = torch.empty_like(weights)
        g_values = torch.empty(values.shape if ctx.needs_input_grad[1] else (0, channels))
        saved = (values, t_start, t_end, start, count, weights, behind)
        arrays = (g_total, g_opacity, g_depth, g_weights, *saved, g_sigma, g_values)
        _backward(*(_array(a) for a in arrays))
        return g_sigma, (g_values if ctx.needs_input_grad[1] else None), None, None, None, None


def composite(sigma: Tensor, values: Tensor, samples: Samples) -> Composite:
    """See `march.composite`."""
    arrays = (samples.t_start, samples.t_end, samples.start, samples.count)
    return Composite(*_Composite.apply(sigma.float(), values.float(), *arrays))
