"""The marcher and the compositor on a GPU as Triton kernels.

One program works on one ray, BLOCK steps or samples at a time, and is the only writer of what it writes: results are
the same bits every time. Everything is float32. The marcher needs no memory but for the samples that it keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from threedgen.representations.options import MarchConfig

from . import Samples
from .autograd import differentiable
from .torch_twin import most_steps, positions, spans

__all__ = ["composite", "march", "positions", "visible"]

BLOCK = 64  # samples of a ray at a time


@triton.jit
def _steps(origins, directions, first, leave, steps, cells, ray, k, scale, radius, SIZE: tl.constexpr):
    """Where steps k (BLOCK,) of a ray begin and end, and which of them are kept. cells (SIZE, SIZE, SIZE), flat."""
    begin, step = tl.load(first + ray), tl.load(steps + ray)
    t_start, t_end = begin + k.to(tl.float32) * step, begin + (k + 1).to(tl.float32) * step
    t_mid = 0.5 * (t_start + t_end)
    keep = t_mid < tl.load(leave + ray)
    if SIZE > 0:
        cell = tl.zeros_like(k)
        for axis in tl.static_range(3):
            x = tl.load(origins + ray * 3 + axis) + t_mid * tl.load(directions + ray * 3 + axis)
            along = ((x + radius) * scale).to(tl.int32)
            cell = cell * SIZE + tl.minimum(tl.maximum(along, 0), SIZE - 1)
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
    most = tl.load(limit + ray)
    for done in range(0, most, BLOCK):
        at = done + k
        _, _, keep = _steps(origins, directions, first, leave, steps, cells, ray, at, scale, radius, SIZE)
        kept += tl.sum((keep & (at < most)).to(tl.int32), axis=0)
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
    """The same steps again, now that it is known where each ray's samples begin."""
    ray = tl.program_id(0).to(tl.int64)
    k, free = tl.arange(0, BLOCK), tl.load(start + ray)
    most = tl.load(limit + ray)
    for done in range(0, most, BLOCK):
        at = done + k
        t_start, t_end, keep = _steps(origins, directions, first, leave, steps, cells, ray, at, scale, radius, SIZE)
        keep = keep & (at < most)
        before = tl.cumsum(keep.to(tl.int32), axis=0) - 1
        tl.store(ray_index + free + before, ray, mask=keep)
        tl.store(t_starts + free + before, t_start, mask=keep)
        tl.store(t_ends + free + before, t_end, mask=keep)
        free += tl.sum(keep.to(tl.int32), axis=0)


@triton.jit
def _interval(sigma, t_start, t_end, at, there):
    """Optical depth, length and midpoint of samples; 0 where there is none."""
    first = tl.load(t_start + at, mask=there, other=0.0)
    last = tl.load(t_end + at, mask=there, other=0.0)
    return tl.load(sigma + at, mask=there, other=0.0) * (last - first), last - first, 0.5 * (first + last)


@triton.jit
def _forward(
    sigma,
    values,
    t_start,
    t_end,
    start,
    count,
    weights,
    behind,
    total,
    opacity,
    depth,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """behind (N,): the transmittance after each sample, kept for the backward pass."""
    ray = tl.program_id(0).to(tl.int64)
    begin, many = tl.load(start + ray), tl.load(count + ray)
    k, c = tl.arange(0, BLOCK), tl.arange(0, WIDE)
    passed, seen, far = 0.0, 0.0, 0.0
    colour = tl.zeros((WIDE,), tl.float32)
    for done in range(0, many, BLOCK):
        there = done + k < many
        at = begin + done + k
        optical, _, middle = _interval(sigma, t_start, t_end, at, there)
        before = passed + tl.cumsum(optical, axis=0) - optical
        light, through = tl.exp(-before), tl.exp(-optical)
        weight = light * (1.0 - through)
        tl.store(weights + at, weight, mask=there)
        tl.store(behind + at, light * through, mask=there)
        both = there[:, None] & (c < C)[None, :]
        value = tl.load(values + at[:, None] * C + c[None, :], mask=both, other=0.0)
        colour += tl.sum(weight[:, None] * value, axis=0)
        seen += tl.sum(weight, axis=0)
        far += tl.sum(weight * middle, axis=0)
        passed += tl.sum(optical, axis=0)
    tl.store(total + ray * C + c, colour, mask=c < C)
    tl.store(opacity + ray, seen)
    tl.store(depth + ray, far)


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
    behind,
    g_sigma,
    g_values,
    WEIGHTS: tl.constexpr,
    VALUES: tl.constexpr,
    C: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d w_j / d sigma_i = dt_i T_(i+1) for j = i and -dt_i w_j for j > i: from the far end, with a running sum.

    WEIGHTS: something depends on the weights themselves; VALUES: the values need a gradient.
    """
    ray = tl.program_id(0).to(tl.int64)
    begin, many = tl.load(start + ray), tl.load(count + ray)
    k, c = tl.arange(0, BLOCK), tl.arange(0, WIDE)
    to_colour = tl.load(g_total + ray * C + c, mask=c < C, other=0.0)
    to_opacity, to_depth, later = tl.load(g_opacity + ray), tl.load(g_depth + ray), 0.0
    for done in range(0, many, BLOCK):
        there = done + k < many
        at = begin + many - 1 - done - k
        _, length, middle = _interval(sigma, t_start, t_end, at, there)
        both = there[:, None] & (c < C)[None, :]
        cell = at[:, None] * C + c[None, :]
        value = tl.load(values + cell, mask=both, other=0.0)
        weight = tl.load(weights + at, mask=there, other=0.0)
        to_weight = to_opacity + to_depth * middle + tl.sum(to_colour[None, :] * value, axis=1)
        if WEIGHTS:
            to_weight += tl.load(g_weights + at, mask=there, other=0.0)
        share = weight * to_weight
        beyond = later + tl.cumsum(share, axis=0) - share
        light = tl.load(behind + at, mask=there, other=0.0)
        tl.store(g_sigma + at, length * (light * to_weight - beyond), mask=there)
        if VALUES:
            tl.store(g_values + cell, weight[:, None] * to_colour[None, :], mask=both)
        later += tl.sum(share, axis=0)


@triton.jit
def _visible(sigma, t_start, t_end, start, count, alpha_threshold, early_stop, keep, BLOCK: tl.constexpr):
    ray = tl.program_id(0).to(tl.int64)
    begin, many = tl.load(start + ray), tl.load(count + ray)
    k = tl.arange(0, BLOCK)
    passed = 0.0
    for done in range(0, many, BLOCK):
        there = done + k < many
        at = begin + done + k
        optical, _, _ = _interval(sigma, t_start, t_end, at, there)
        before = passed + tl.cumsum(optical, axis=0) - optical
        shown = (tl.exp(-before) >= early_stop) & (1.0 - tl.exp(-optical) >= alpha_threshold)
        tl.store(keep + at, shown.to(tl.uint8), mask=there)
        passed += tl.sum(optical, axis=0)


# --- of tensors -------------------------------------------------------------------------------------------------


def march(
    origins: Tensor, directions: Tensor, options: MarchConfig, grid: Tensor | None, jitter: Tensor | None
) -> Samples:
    """Count the samples of each ray, then fill them in; see `march.march`."""
    first, leave, steps = spans(origins, directions, options, jitter)
    limit = most_steps(first, leave, steps, options).int()
    size, radius = 0 if grid is None else len(grid), options.radius
    cells = first if grid is None else grid.contiguous().view(torch.uint8)
    given = origins, directions, first, leave, steps, cells, limit, size / (2 * radius), float(radius)
    count = torch.empty(len(first), dtype=torch.long, device=first.device)
    # a product and a sum stay two roundings, as in torch
    constants: dict[str, Any] = {"SIZE": size, "BLOCK": BLOCK, "enable_fp_fusion": False}
    _count[(len(first),)](*given, count, **constants)
    start = count.cumsum(0) - count
    total = int(count.sum())
    ray_index, t_start, t_end = count.new_empty(total), first.new_empty(total), first.new_empty(total)
    _fill[(len(first),)](*given, start, ray_index, t_start, t_end, **constants)
    return Samples(ray_index, t_start, t_end, start, count)


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float) -> Tensor:
    """See `march.visible`."""
    keep = torch.empty(len(samples), dtype=torch.uint8, device=sigma.device)
    given = sigma.float().contiguous(), *samples.intervals(), float(alpha_threshold), float(early_stop)
    _visible[(samples.n_rays,)](*given, keep, BLOCK=BLOCK)
    return keep.bool()


def forward(sigma: Tensor, values: Tensor, *samples: Tensor) -> tuple[Tensor, ...]:
    """See `autograd.differentiable`."""
    rays, channels = len(samples[2]), values.shape[1]
    weights, behind = torch.empty_like(sigma), torch.empty_like(sigma)
    pixels = sigma.new_empty(rays, channels), sigma.new_empty(rays, 1), sigma.new_empty(rays, 1)
    _forward[(rays,)](sigma, values, *samples, weights, behind, *pixels, **_shape(channels))
    return *pixels, weights, behind


def backward(grads: Sequence[Tensor | None], saved: Sequence[Tensor], learn: bool) -> tuple[Tensor, Tensor | None]:
    """See `autograd.differentiable`."""
    *pixels, to_weights = grads
    sigma, values = saved[:2]
    g_sigma, g_values = torch.empty_like(sigma), torch.empty_like(values) if learn else None
    given = (*pixels, sigma if to_weights is None else to_weights, *saved)
    flags = {"WEIGHTS": to_weights is not None, "VALUES": learn}
    out = g_sigma, values if g_values is None else g_values
    _backward[(len(saved[4]),)](*given, *out, **flags, **_shape(values.shape[1]))
    return g_sigma, g_values


def _shape(channels: int) -> dict[str, int]:
    return {"C": channels, "WIDE": triton.next_power_of_2(channels), "BLOCK": BLOCK}


composite = differentiable(forward, backward)
