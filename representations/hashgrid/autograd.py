"""Kernels of the hash grid as differentiable torch functions, to second order; see numba_kernels.py for the algebra.

A first derivative is itself a Function, so that autograd can differentiate it: analytic normals are
position gradients, and a loss on them needs the gradient of a gradient. `Kernels` are what a back end has to bring.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from . import torch_twin
from .torch_twin import Levels

Kernels = ModuleType
"""encode, scatter and position_gradient without gradients: numba_kernels and triton_kernels, which say their shapes."""


class Encode(Function):
    """(x, table) -> features. No position gradient is computed unless x needs it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, levels: Levels, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.more = levels, kernels
        return kernels.encode(x, table, levels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, table), more = ctx.saved_tensors, ctx.more
        to_x = PositionGradient.apply(x, table, grad, *more) if ctx.needs_input_grad[0] else None
        to_table = TableGradient.apply(x, grad, *more) if ctx.needs_input_grad[1] else None
        return to_x, to_table, None, None


class TableGradient(Function):
    """(x, grad of the features) -> gradient of the table."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, levels: Levels, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.more = levels, kernels
        return kernels.scatter(x, grad, levels)

    @staticmethod
    def backward(ctx: Any, to_table: Tensor) -> tuple[Tensor | None, ...]:
        (x, grad), more = ctx.saved_tensors, ctx.more
        to_x = PositionGradient.apply(x, to_table, grad, *more) if ctx.needs_input_grad[0] else None
        to_grad = Encode.apply(x, to_table, *more) if ctx.needs_input_grad[1] else None
        return to_x, to_grad, None, None


class PositionGradient(Function):
    """(x, table, grad of the features) -> gradient of x. Differentiable once more.

    The part of its gradient that goes to x itself (mixed second derivatives) is left to the torch twin:
    only a loss on normals at points that are themselves optimised asks for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, grad: Tensor, levels: Levels, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, table, grad)
        ctx.more = levels, kernels
        return kernels.position_gradient(x, table, grad, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor | None, ...]:
        x, table, grad = ctx.saved_tensors
        needs, (levels, kernels), to_x = ctx.needs_input_grad, ctx.more, None
        if needs[0]:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                slope = torch_twin.position_gradient(leaf, table.detach(), grad.detach(), levels)
            to_x = torch.autograd.grad(slope, leaf, along)[0]
        to_table = kernels.scatter(x, grad, levels, along) if needs[1] else None
        to_grad = kernels.encode(x, table, levels, along) if needs[2] else None
        return to_x, to_table, to_grad, None, None


@dataclass(frozen=True)
class Differentiable:
    """Kernels under the interface of torch_twin."""

    kernels: Kernels

    def encode(self, x: Tensor, table: Tensor, levels: Levels) -> Tensor:
        """Features (N, L*F) of points x (N, 3) in [0, 1]^3 (clamped); as torch_twin.encode."""
        return Encode.apply(x, table, levels, self.kernels)

    def position_gradient(self, x: Tensor, table: Tensor, grad: Tensor, levels: Levels) -> Tensor:
        """d<grad, encode(x)>/dx, (N, 3), for grad (N, L*F); as torch_twin.position_gradient."""
        return PositionGradient.apply(x, table, grad, levels, self.kernels)
