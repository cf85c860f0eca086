"""Ray marching and compositing on GPUs with Triton, in float32.

One program processes one ray, BLOCK steps or samples at a time. Each output element has one writer, so results are
bit-identical in every run. The marcher allocates memory only for the samples that it keeps.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from threedgen.representations.volume.options import MarchConfig

from . import Samples, differentiable, max_samples_per_ray

BLOCK = tl.constexpr(64)  # samples of a ray at a time
ONE_WARP: dict[str, int | bool] = {"num_warps": 1}  # sums over 64 samples then need no shared memory


@triton.jit
def _steps(origins, directions, spans, cells, ray, k, scale, radius, SIZE: tl.constexpr):
    # start, end and keep flag (BLOCK,) of the steps k (BLOCK,) of a ray; `cells` is the flat occupancy grid
    entry, leave, step = tl.load(spans + ray * 3), tl.load(spans + ray * 3 + 1), tl.load(spans + ray * 3 + 2)
    t_start, t_end = entry + k.to(tl.float32) * step, entry + (k + 1).to(tl.float32) * step
    t_mid = 0.5 * (t_start + t_end)
    keep = t_mid < leave
    if SIZE > 0:
        cell = tl.zeros_like(k)
        for axis in tl.static_range(3):
            x = tl.load(origins + ray * 3 + axis) + t_mid * tl.load(directions + ray * 3 + axis)
            index = ((x + radius) * scale).to(tl.int32)
            cell = cell * SIZE + tl.minimum(tl.maximum(index, 0), SIZE - 1)
        keep = keep & (tl.load(cells + cell, mask=keep, other=0) != 0)
    return t_start, t_end, keep


@triton.jit
def _count(origins, directions, spans, cells, limit, scale, radius, count, SIZE: tl.constexpr):
    ray = tl.program_id(0).to(tl.int64)
    k, kept = tl.arange(0, BLOCK), 0
    n_steps = tl.load(limit + ray)
    for done in range(0, n_steps, BLOCK):
        at = done + k
        _, _, keep = _steps(origins, directions, spans, cells, ray, at, scale, radius, SIZE)
        kept += tl.sum((keep & (at < n_steps)).to(tl.int32), axis=0)
    tl.store(count + ray, kept)


@triton.jit
def _fill(
    origins, directions, spans, cells, limit, scale, radius, start, ray_index, t_starts, t_ends, SIZE: tl.constexpr
):
    ray = tl.program_id(0).to(tl.int64)
    k, offset = tl.arange(0, BLOCK), tl.load(start + ray)
    n_steps = tl.load(limit + ray)
    for done in range(0, n_steps, BLOCK):
        at = done + k
        t_start, t_end, keep = _steps(origins, directions, spans, cells, ray, at, scale, radius, SIZE)
        keep = keep & (at < n_steps)
        before = tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.store(ray_index + offset + before, ray, mask=keep)
        tl.store(t_starts + offset + before, t_start, mask=keep)
        tl.store(t_ends + offset + before, t_end, mask=keep)
        offset += tl.sum(keep.to(tl.int32), axis=0)


@triton.jit
def _interval(sigma, t_start, t_end, at, mask):
    # optical depth (sigma * length), length and midpoint of the samples at indices `at`, 0 outside `mask`
    first = tl.load(t_start + at, mask=mask, other=0.0)
    last = tl.load(t_end + at, mask=mask, other=0.0)
    return tl.load(sigma + at, mask=mask, other=0.0) * (last - first), last - first, 0.5 * (first + last)


@triton.jit
def _forward(
    sigma, values, t_start, t_end, start, count, weights, transmittance, pixels, C: tl.constexpr, WIDE: tl.constexpr
):
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
    pixel = pixels + ray * (C + 2)
    tl.store(pixel + c, colour, mask=c < C)
    tl.store(pixel + C, alpha_sum)
    tl.store(pixel + C + 1, t_sum)


@triton.jit
def _backward(
    g_pixels,
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
    C: tl.constexpr,
    WIDE: tl.constexpr,
):
    # d w_j / d sigma_i = dt_i T_(i+1) for j = i and -dt_i w_j for j > i, last sample first
    ray = tl.program_id(0).to(tl.int64)
    first, n_samples = tl.load(start + ray), tl.load(count + ray)
    k, c = tl.arange(0, BLOCK), tl.arange(0, WIDE)
    pixel, suffix_sum = g_pixels + ray * (C + 2), 0.0
    grad_colour = tl.load(pixel + c, mask=c < C, other=0.0)
    grad_opacity, grad_depth = tl.load(pixel + C), tl.load(pixel + C + 1)
    for done in range(0, n_samples, BLOCK):
        mask = done + k < n_samples
        at = first + n_samples - 1 - done - k
        _, length, middle = _interval(sigma, t_start, t_end, at, mask)
        value_mask = mask[:, None] & (c < C)[None, :]
        cell = at[:, None] * C + c[None, :]
        value = tl.load(values + cell, mask=value_mask, other=0.0)
        weight = tl.load(weights + at, mask=mask, other=0.0)
        grad_weight = grad_opacity + grad_depth * middle + tl.sum(grad_colour[None, :] * value, axis=1)
        grad_weight += tl.load(g_weights + at, mask=mask, other=0.0)
        product = weight * grad_weight
        suffix = suffix_sum + tl.cumsum(product, axis=0) - product
        T = tl.load(transmittance + at, mask=mask, other=0.0)
        tl.store(g_sigma + at, length * (T * grad_weight - suffix), mask=mask)
        tl.store(g_values + cell, weight[:, None] * grad_colour[None, :], mask=value_mask)
        suffix_sum += tl.sum(product, axis=0)


@triton.jit
def _visible(sigma, t_start, t_end, start, count, alpha_threshold, early_stop, keep):
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


def place(
    origins: Tensor,
    directions: Tensor,
    spans: Tensor,
    options: MarchConfig,
    grid: Tensor | None,
    total: int | None = None,
) -> Samples:
    inputs, constants = _arguments(origins, directions, spans, options, grid)
    count = _counts(inputs, constants)
    start = count.cumsum(0) - count
    total = int(count.sum()) if total is None else total
    ray_index, t_start, t_end = count.new_empty(total), spans.new_empty(total), spans.new_empty(total)
    _fill[(len(count),)](*inputs, start, ray_index, t_start, t_end, **constants)
    return Samples(ray_index, t_start, t_end, start, count)


def counts(origins: Tensor, directions: Tensor, spans: Tensor, options: MarchConfig, grid: Tensor | None) -> Tensor:
    return _counts(*_arguments(origins, directions, spans, options, grid))


def _arguments(
    origins: Tensor, directions: Tensor, spans: Tensor, options: MarchConfig, grid: Tensor | None
) -> tuple[tuple[Any, ...], dict[str, int | bool]]:
    size, radius, limit = 0 if grid is None else len(grid), options.radius, max_samples_per_ray(spans).int()
    cells = spans if grid is None else grid.contiguous().view(torch.uint8)
    inputs = origins, directions, spans, cells, limit, size / (2 * radius), float(radius)
    # no fused multiply-add: round products and sums as torch does
    return inputs, {"SIZE": size, "enable_fp_fusion": False} | ONE_WARP


def _counts(inputs: tuple[Any, ...], constants: dict[str, int | bool]) -> Tensor:
    count = torch.empty(len(inputs[0]), dtype=torch.long, device=inputs[0].device)
    _count[(len(count),)](*inputs, count, **constants)
    return count


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float) -> Tensor:
    keep = torch.empty(len(samples), dtype=torch.uint8, device=sigma.device)
    inputs = sigma.float().contiguous(), *samples.intervals(), float(alpha_threshold), float(early_stop)
    _visible[(samples.n_rays,)](*inputs, keep, **ONE_WARP)
    return keep.bool()


def forward(sigma: Tensor, values: Tensor, *samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rays, channels = len(samples[2]), values.shape[1]
    pixels = sigma.new_empty(rays, channels + 2)
    weights, transmittance = torch.empty_like(sigma), torch.empty_like(sigma)
    inputs = sigma, values, *samples, weights, transmittance, pixels
    _forward[(rays,)](*inputs, C=channels, WIDE=triton.next_power_of_2(channels), **ONE_WARP)
    return pixels, weights, transmittance


def backward(g_pixels: Tensor, g_weights: Tensor, *saved: Tensor) -> tuple[Tensor, Tensor]:
    g_sigma, g_values, channels = torch.empty_like(saved[0]), torch.empty_like(saved[1]), saved[1].shape[1]
    inputs = g_pixels, g_weights, *saved, g_sigma, g_values
    _backward[(len(g_pixels),)](*inputs, C=channels, WIDE=triton.next_power_of_2(channels), **ONE_WARP)
    return g_sigma, g_values


composite = differentiable(forward, backward)
