"""The numba kernels as differentiable torch functions, to second order; see numba_kernels.py for the algebra.

A first derivative is itself a Function, so that autograd can differentiate it: analytic normals are
position gradients, and a loss on them needs the gradient of a gradient. Tensors are float32 on the CPU,
features (N, L*F) with the memory order of (L*F, N), which both the kernels and matrix products like.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import numba_kernels as kernels
from . import torch_twin
from .torch_twin import Levels

_NO_DIRECTION = np.empty((3, 0), np.float32)


def _columns(rows: Tensor) -> np.ndarray:
    """(N, C) as a C-contiguous NumPy array (C, N); no copy if the memory order is that already."""
    return rows.detach().t().contiguous().numpy()


def _flat(table: Tensor) -> np.ndarray:
    return table.detach().reshape(-1).numpy()


def _run(kernel: Callable[..., None], levels: Levels, n_features: int, out: Tensor, *arrays: np.ndarray) -> None:
    """Let a kernel fill `out`; its arrays are the points (3, N) and what else it reads."""
    resolution, offset = levels.resolution.astype(np.int32), levels.offset.astype(np.int64)
    geometry = levels.scale, resolution, offset, levels.hashed, (0,) * n_features
    kernels.in_shares(kernel, arrays[0].shape[1], *arrays, *geometry, out.numpy())


def _encode(x: Tensor, table: Tensor, levels: Levels, direction: Tensor | None = None) -> Tensor:
    out = torch.empty(len(levels.scale) * table.shape[1], len(x))
    along = _NO_DIRECTION if direction is None else _columns(direction)
    _run(kernels.encode, levels, table.shape[1], out, _columns(x), along, _flat(table))
    return out.t()


def _scatter(x: Tensor, grad: Tensor, levels: Levels, direction: Tensor | None = None) -> Tensor:
    n_features = grad.shape[1] // len(levels.scale)
    out = torch.empty(levels.entries * n_features)
    along = _NO_DIRECTION if direction is None else _columns(direction)
    _run(kernels.scatter, levels, n_features, out, _columns(x), along, _columns(grad))
    return out.view(-1, n_features)


def _position_gradient(x: Tensor, table: Tensor, grad: Tensor, levels: Levels) -> Tensor:
    out = torch.empty(3, len(x))
    _run(kernels.position_gradient, levels, table.shape[1], out, _columns(x), _flat(table), _columns(grad))
    return out.t()


class Encode(Function):
    """(x, table) -> features. No position gradient is computed unless x needs it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, levels: Levels) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.levels = levels
        return _encode(x, table, levels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, table = ctx.saved_tensors
        to_x = PositionGradient.apply(x, table, grad, ctx.levels) if ctx.needs_input_grad[0] else None
        to_table = TableGradient.apply(x, grad, ctx.levels) if ctx.needs_input_grad[1] else None
        return to_x, to_table, None


class TableGradient(Function):
    """(x, grad of the features) -> gradient of the table."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, levels: Levels) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.levels = levels
        return _scatter(x, grad, levels)

    @staticmethod
    def backward(ctx: Any, to_table: Tensor) -> tuple[Tensor | None, ...]:
        x, grad = ctx.saved_tensors
        to_x = PositionGradient.apply(x, to_table, grad, ctx.levels) if ctx.needs_input_grad[0] else None
        to_grad = Encode.apply(x, to_table, ctx.levels) if ctx.needs_input_grad[1] else None
        return to_x, to_grad, None


class PositionGradient(Function):
    """(x, table, grad of the features) -> gradient of x. Differentiable once more.

    The part of its gradient that goes to x itself (mixed second derivatives) is left to the torch twin:
    only a loss on normals at points that are themselves optimised asks for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, grad: Tensor, levels: Levels) -> Tensor:
        ctx.save_for_backward(x, table, grad)
        ctx.levels = levels
        return _position_gradient(x, table, grad, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor | None, ...]:
        x, table, grad = ctx.saved_tensors
        needs = ctx.needs_input_grad
        to_x = _mixed_derivatives(x, table, grad, along, ctx.levels) if needs[0] else None
        to_table = _scatter(x, grad, ctx.levels, along) if needs[1] else None
        to_grad = _encode(x, table, ctx.levels, along) if needs[2] else None
        return to_x, to_table, to_grad, None


def _mixed_derivatives(x: Tensor, table: Tensor, grad: Tensor, along: Tensor, levels: Levels) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        slope = torch_twin.position_gradient(leaf, table.detach(), grad.detach(), levels)
    return torch.autograd.grad(slope, leaf, along)[0]


def encode(x: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Features (N, L*F) of points x (N, 3) in [0, 1]^3 (clamped); as torch_twin.encode."""
    return Encode.apply(x, table, levels)


def position_gradient(x: Tensor, table: Tensor, grad: Tensor, levels: Levels) -> Tensor:
    """d<grad, encode(x)>/dx, (N, 3), for grad (N, L*F); as torch_twin.position_gradient."""
    return PositionGradient.apply(x, table, grad, levels)
