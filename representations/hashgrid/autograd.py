"""Autograd functions that make the hash grid kernels differentiable twice; numba_kernels.py explains the algebra.

The first derivatives are Functions too. Analytic normals are position gradients, so a loss on normals needs second
derivatives.

Shapes: points x (N, 3) in [0, 1]^3, table (entries, F), features and their gradients (N, L*F) for L levels.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from . import torch_twin
from .torch_twin import Levels

Kernels = ModuleType
"""Back end with functions encode, scatter and position_gradient without autograd: numba_kernels or triton_kernels."""


class Context(FunctionCtx):
    """State that the forward pass saves for the backward pass. torch sets `needs_input_grad` and `saved_tensors`."""

    setup: tuple[Levels, Kernels]
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]


class Encode(Function):
    """Map (x, table) to features. The backward pass computes the gradient of x only if x needs it."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, table: Tensor, levels: Levels, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.setup = levels, kernels
        return kernels.encode(x, table, levels)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, table), setup = ctx.saved_tensors, ctx.setup
        grad_x = PositionGradient.apply(x, table, grad, *setup) if ctx.needs_input_grad[0] else None
        grad_table = TableGradient.apply(x, grad, *setup) if ctx.needs_input_grad[1] else None
        return grad_x, grad_table, None, None


class TableGradient(Function):
    """Map (x, gradient of the features) to the gradient of the table."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, grad: Tensor, levels: Levels, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.setup = levels, kernels
        return kernels.scatter(x, grad, levels)

    @staticmethod
    def backward(ctx: Context, grad_table: Tensor) -> tuple[Tensor | None, ...]:
        (x, grad), setup = ctx.saved_tensors, ctx.setup
        grad_x = PositionGradient.apply(x, grad_table, grad, *setup) if ctx.needs_input_grad[0] else None
        grad_grad = Encode.apply(x, grad_table, *setup) if ctx.needs_input_grad[1] else None
        return grad_x, grad_grad, None, None


class PositionGradient(Function):
    """Map (x, table, gradient of the features) to the gradient of x (N, 3). It is differentiable once more.

    The second derivative in x is computed by torch_twin. It is needed only for a loss on normals at points that are
    themselves optimised.
    """

    @staticmethod
    def forward(ctx: Context, x: Tensor, table: Tensor, grad: Tensor, levels: Levels, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(x, table, grad)
        ctx.setup = levels, kernels
        return kernels.position_gradient(x, table, grad, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, direction: Tensor) -> tuple[Tensor | None, ...]:
        x, table, grad = ctx.saved_tensors
        needs, (levels, kernels), grad_x = ctx.needs_input_grad, ctx.setup, None
        if needs[0]:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                gradient = torch_twin.position_gradient(leaf, table.detach(), grad.detach(), levels)
            grad_x = torch.autograd.grad(gradient, leaf, direction)[0]
        grad_table = kernels.scatter(x, grad, levels, direction) if needs[1] else None
        grad_grad = kernels.encode(x, table, levels, direction) if needs[2] else None
        return grad_x, grad_table, grad_grad, None, None


@dataclass(frozen=True)
class Differentiable:
    """Kernels of a back end, wrapped in autograd functions. It has the same two functions as the module torch_twin."""

    kernels: Kernels

    def encode(self, x: Tensor, table: Tensor, levels: Levels) -> Tensor:
        """Return features (N, L*F) of points x (N, 3) in [0, 1]^3 from a table (entries, F)."""
        return Encode.apply(x, table, levels, self.kernels)

    def position_gradient(self, x: Tensor, table: Tensor, grad: Tensor, levels: Levels) -> Tensor:
        """Return the vector-Jacobian product (N, 3) of `encode` at x (N, 3) for a feature gradient (N, L*F)."""
        return PositionGradient.apply(x, table, grad, levels, self.kernels)
