"""Triton back end of marching and compositing, for GPUs, in float32.

One program processes one ray, BLOCK steps or samples at a time. Each output element has one writer, so results are
bit-identical in every run. The marcher allocates memory only for the samples that it keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from threedgen.representations.options import MarchConfig

from . import Samples
from .autograd import differentiable
from .torch_twin import max_samples_per_ray, positions, spans

__all__ = ["composite", "march", "positions", "visible"]

BLOCK = 64  # samples of a ray at a time


@triton.jit
def _steps(origins, directions, first, leave, steps, cells, ray, k, scale, radius, SIZE: tl.constexpr):
    """Return start, end and keep flag (BLOCK,) of the steps k (BLOCK,) of a ray. `cells` is the flat occupancy grid."""
    entry, step = tl.load(first + ray), tl.load(steps + ray)
    t_start, t_end = entry + k.to(tl.float32) * step, entry + (k + 1).to(tl.float32) * step
    t_mid = 0.5 * (t_start + t_end)
    keep = t_mid < tl.load(leave + ray)
    if SIZE > 0:
        cell = tl.zeros_like(k)
        for axis in tl.static_range(3):
            x = tl.load(origins + ray * 3 + axis) + t_mid * tl.load(directions + ray * 3 + axis)
            index = ((x + radius) * scale).to(tl.int32)
            cell = cell * SIZE + tl.minimum(tl.maximum(index, 0), SIZE - 1)
        keep = keep & (tl.load(cells + cell, mask=keep, other=0) != 0)
    return t_start, t_end, keep


@triton.jit
def _count(
    origins,
    directions,
    first,
    leave,
    steps,
    cells,
    limit,
    scale,
    radius,
    count,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ray = tl.program_id(0).to(tl.int64)
    k, kept = tl.arange(0, BLOCK), 0
    n_steps = tl.load(limit + ray)
    for done in range(0, n_steps, BLOCK):
        at = done + k
        _, _, keep = _steps(origins, directions, first, leave, steps, cells, ray, at, scale, radius, SIZE)
        kept += tl.sum((keep & (at < n_steps)).to(tl.int32), axis=0)
    tl.store(count + ray, kept)


@triton.jit
def _fill(
    origins,
    directions,
    first,
    leave,
    steps,
    cells,
    limit,
    scale,
    radius,
    start,
    ray_index,
    t_starts,
    t_ends,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the samples of each ray, beginning at index start[ray]."""
    ray = tl.program_id(0).to(tl.int64)
    k, offset = tl.arange(0, BLOCK), tl.load(start + ray)
    n_steps = tl.load(limit + ray)
    for done in range(0, n_steps, BLOCK):
        at = done + k
        t_start, t_end, keep = _steps(origins, directions, first, leave, steps, cells, ray, at, scale, radius, SIZE)
        keep = keep & (at < n_steps)
        before = tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.store(ray_index + offset + before, ray, mask=keep)
        tl.store(t_starts + offset + before, t_start, mask=keep)
        tl.store(t_ends + offset + before, t_end, mask=keep)
        offset += tl.sum(keep.to(tl.int32), axis=0)


@triton.jit
def _interval(sigma, t_start, t_end, at, mask):
    """Return optical depth (sigma * length), length and midpoint of the samples at indices `at`; 0 where masked."""
    first = tl.load(t_start + at, mask=mask, other=0.0)
    last = tl.load(t_end + at, mask=mask, other=0.0)
    return tl.load(sigma + at, mask=mask, other=0.0) * (last - first), last - first, 0.5 * (first + last)


@triton.jit
def _forward(
    sigma,
    values,
    t_start,
    t_end,
    start,
    count,
    weights,
    transmittance,
    total,
    opacity,
    depth,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Composite the samples of each ray. Also write the transmittance (N,) behind each sample for the backward pass."""
    ray = tl.program_id(0).to(tl.int64)
    first, n_samples = tl.load(start + ray), tl.load(count + ray)
    k, c = tl.arange(0, BLOCK), tl.arange(0, WIDE)
    optical_sum, alpha_sum, t_sum = 0.0, 0.0, 0.0
    colour = tl.zeros((WIDE,), tl.float32)
    for done in range(0, n_samples, BLOCK):
        mask = done + k < n_samples
        at = first + done + k
        optical, _, middle = _interval(sigma, t_start, t_end, at, mask)
        before = optical_sum + tl.cumsum(optical, axis=0) - optical
        T, one_minus_alpha = tl.exp(-before), tl.exp(-optical)
        weight = T * (1.0 - one_minus_alpha)
        tl.store(weights + at, weight, mask=mask)
        tl.store(transmittance + at, T * one_minus_alpha, mask=mask)
        value_mask = mask[:, None] & (c < C)[None, :]
        value = tl.load(values + at[:, None] * C + c[None, :], mask=value_mask, other=0.0)
        colour += tl.sum(weight[:, None] * value, axis=0)
        alpha_sum += tl.sum(weight, axis=0)
        t_sum += tl.sum(weight * middle, axis=0)
        optical_sum += tl.sum(optical, axis=0)
    tl.store(total + ray * C + c, colour, mask=c < C)
    tl.store(opacity + ray, alpha_sum)
    tl.store(depth + ray, t_sum)


@triton.jit
def _backward(
    g_total,
    g_opacity,
    g_depth,
    g_weights,
    sigma,
    values,
    t_start,
    t_end,
    start,
    count,
    weights,
    transmittance,
    g_sigma,
    g_values,
    WEIGHTS: tl.constexpr,
    VALUES: tl.constexpr,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Backpropagate: d w_j / d sigma_i = dt_i T_(i+1) for j = i, -dt_i w_j for j > i; sums run from the last sample on.

    WEIGHTS: True if the loss depends on the weights. VALUES: True if the values need a gradient.
    """
    ray = tl.program_id(0).to(tl.int64)
    first, n_samples = tl.load(start + ray), tl.load(count + ray)
    k, c = tl.arange(0, BLOCK), tl.arange(0, WIDE)
    grad_colour = tl.load(g_total + ray * C + c, mask=c < C, other=0.0)
    grad_opacity, grad_depth, suffix_sum = tl.load(g_opacity + ray), tl.load(g_depth + ray), 0.0
    for done in range(0, n_samples, BLOCK):
        mask = done + k < n_samples
        at = first + n_samples - 1 - done - k
        _, length, middle = _interval(sigma, t_start, t_end, at, mask)
        value_mask = mask[:, None] & (c < C)[None, :]
        cell = at[:, None] * C + c[None, :]
        value = tl.load(values + cell, mask=value_mask, other=0.0)
        weight = tl.load(weights + at, mask=mask, other=0.0)
        grad_weight = grad_opacity + grad_depth * middle + tl.sum(grad_colour[None, :] * value, axis=1)
        if WEIGHTS:
            grad_weight += tl.load(g_weights + at, mask=mask, other=0.0)
        product = weight * grad_weight
        suffix = suffix_sum + tl.cumsum(product, axis=0) - product
        T = tl.load(transmittance + at, mask=mask, other=0.0)
        tl.store(g_sigma + at, length * (T * grad_weight - suffix), mask=mask)
        if VALUES:
            tl.store(g_values + cell, weight[:, None] * grad_colour[None, :], mask=value_mask)
        suffix_sum += tl.sum(product, axis=0)


@triton.jit
def _visible(sigma, t_start, t_end, start, count, alpha_threshold, early_stop, keep, BLOCK: tl.constexpr):
    ray = tl.program_id(0).to(tl.int64)
    first, n_samples = tl.load(start + ray), tl.load(count + ray)
    k = tl.arange(0, BLOCK)
    optical_sum = 0.0
    for done in range(0, n_samples, BLOCK):
        mask = done + k < n_samples
        at = first + done + k
        optical, _, _ = _interval(sigma, t_start, t_end, at, mask)
        before = optical_sum + tl.cumsum(optical, axis=0) - optical
        is_visible = (tl.exp(-before) >= early_stop) & (1.0 - tl.exp(-optical) >= alpha_threshold)
        tl.store(keep + at, is_visible.to(tl.uint8), mask=mask)
        optical_sum += tl.sum(optical, axis=0)


# --- tensor interface ------------------------------------------------------------------------------------


def march(
    origins: Tensor, directions: Tensor, options: MarchConfig, grid: Tensor | None, jitter: Tensor | None
) -> Samples:
    """Place samples on R rays, as `march.march` does: first count the samples of each ray, then write them."""
    first, leave, steps = spans(origins, directions, options, jitter)
    limit = max_samples_per_ray(first, leave, steps, options).int()
    size, radius = 0 if grid is None else len(grid), options.radius
    cells = first if grid is None else grid.contiguous().view(torch.uint8)
    inputs = origins, directions, first, leave, steps, cells, limit, size / (2 * radius), float(radius)
    count = torch.empty(len(first), dtype=torch.long, device=first.device)
    # no fused multiply-add: round products and sums as torch does
    constants: dict[str, int | bool] = {"SIZE": size, "BLOCK": BLOCK, "enable_fp_fusion": False}
    _count[(len(first),)](*inputs, count, **constants)
    start = count.cumsum(0) - count
    total = int(count.sum())
    ray_index, t_start, t_end = count.new_empty(total), first.new_empty(total), first.new_empty(total)
    _fill[(len(first),)](*inputs, start, ray_index, t_start, t_end, **constants)
    return Samples(ray_index, t_start, t_end, start, count)


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float) -> Tensor:
    """Return the bool mask (N,) of samples whose alpha and transmittance reach the thresholds (`march.visible`)."""
    keep = torch.empty(len(samples), dtype=torch.uint8, device=sigma.device)
    inputs = sigma.float().contiguous(), *samples.intervals(), float(alpha_threshold), float(early_stop)
    _visible[(samples.n_rays,)](*inputs, keep, BLOCK=BLOCK)
    return keep.bool()


def forward(sigma: Tensor, values: Tensor, *samples: Tensor) -> tuple[Tensor, ...]:
    """Run the forward kernel: return values, opacity, depth, weights and transmittance, see `autograd.Forward`."""
    rays, channels = len(samples[2]), values.shape[1]
    weights, transmittance = torch.empty_like(sigma), torch.empty_like(sigma)
    pixels = sigma.new_empty(rays, channels), sigma.new_empty(rays, 1), sigma.new_empty(rays, 1)
    _forward[(rays,)](sigma, values, *samples, weights, transmittance, *pixels, **_shape(channels))
    return *pixels, weights, transmittance


def backward(
    grads: Sequence[Tensor | None], saved: Sequence[Tensor], values_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Run the backward kernel: return the gradients of sigma (N,) and values (N, C), see `autograd.Backward`."""
    *grad_rays, grad_weights = grads
    sigma, values = saved[:2]
    g_sigma, g_values = torch.empty_like(sigma), torch.empty_like(values) if values_grad else None
    inputs = (*grad_rays, sigma if grad_weights is None else grad_weights, *saved)
    flags = {"WEIGHTS": grad_weights is not None, "VALUES": values_grad}
    out = g_sigma, values if g_values is None else g_values
    _backward[(len(saved[4]),)](*inputs, *out, **flags, **_shape(values.shape[1]))
    return g_sigma, g_values


def _shape(channels: int) -> dict[str, int]:
    return {"C": channels, "WIDE": triton.next_power_of_2(channels), "BLOCK": BLOCK}


composite = differentiable(forward, backward)
