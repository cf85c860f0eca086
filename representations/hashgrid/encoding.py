"""Hash grid, the position encoding of fields, and the autograd functions of its kernels."""

from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from threedgen.representations.backends import load, requires_deterministic
from threedgen.representations.options import HashGridConfig

from . import torch_twin
from .torch_twin import Levels, grid_levels

MODULES = {
    "torch": "threedgen.representations.hashgrid.torch_twin",
    "numba": "threedgen.representations.hashgrid.numba_kernels",
    "triton": "threedgen.representations.hashgrid.triton_kernels",
    "tinycudann": "threedgen.representations.hashgrid.tinycudann_grid",
    "meta": "threedgen.representations.shapes_only",
}
"""Import path of each back end's module. All modules have the function encode(x, table, levels).

Modules whose `encode` has no autograd also have `scatter` and `position_gradient`, for the backward pass.
"""


def position_gradient(encoding: nn.Module, x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient (N, 3) of sum(grad * encoding(x)) with respect to points x (N, 3) in [0, 1]^3.

    `grad` is (N, output_dim). In grad mode the result is differentiable in `grad` and in the encoding's parameters.
    """
    if isinstance(encoding, HashGrid) and has_kernels(module := encoding.backend()):
        x = x.detach().to(encoding.table.dtype)
        return PositionGradient.apply(x, encoding.table, grad, encoding.levels, module)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(encoding(leaf), leaf, grad, create_graph=create_graph)[0]


class HashGrid(nn.Module):
    """Multi-resolution hash grid with L levels; the parameter `table` (entries, F) has F features per entry.

    The features (N, L*F) are ordered by level: l0f0, l0f1, l1f0, ... Points outside [0, 1]^3 are clamped. The output is
    differentiable twice. The table is initialised to U(-1e-4, 1e-4) with the CPU generator `generator`; None: torch's
    global generator. An encoding in a plug-in needs the constructor arguments `options` and `generator`, the
    method `forward`, and the attribute `output_dim`, the number of features.
    """

    def __init__(self, options: HashGridConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = o = options or HashGridConfig()
        self.levels = grid_levels(o.n_levels, o.log2_hashmap_size, o.base_resolution, o.per_level_scale)
        self.output_dim = o.n_levels * o.n_features
        table = torch.rand(self.levels.entries, o.n_features, generator=generator)
        self.table = nn.Parameter((2 * table - 1) * 1e-4)

    def backend(self) -> ModuleType:
        """Return the module of the back end for the device and dtype of the table.

        Raises ConfigError if the configured back end is not installed, cannot be imported, or does not support this
        device and dtype.
        """
        name = self.options.backend
        if name == "auto" and self.table.is_cuda and requires_deterministic():
            name = "torch"  # the atomic additions of the triton kernels have no fixed order
        return load(MODULES, name, self.table.device, self.table.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, L*F) of points x (N, 3) in [0, 1]^3."""
        return encode(x.to(self.table.dtype), self.table, self.levels, self.backend())


# --- autograd of the kernels (numba_kernels.py explains the algebra)
# Analytic normals are gradients with respect to x, so a loss on normals needs second derivatives: gradients are
# Functions too. Shapes: points x (N, 3), table (entries, F), features and their gradients (N, L*F) for L levels.


def has_kernels(module: ModuleType) -> bool:
    return hasattr(module, "scatter")


def encode(x: Tensor, table: Tensor, levels: Levels, module: ModuleType) -> Tensor:
    """Return features (N, L*F) of points x (N, 3), computed by the back end `module`.

    Points are in [0, 1]^3. `levels` has the resolution and the first table entry of each of the L levels. The features
    are differentiable twice in x and in the table (entries, F), with F features per entry.
    """
    return Encode.apply(x, table, levels, module) if has_kernels(module) else module.encode(x, table, levels)


class _Context(FunctionCtx):
    setup: tuple[Levels, ModuleType]
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]


class Encode(Function):
    """Autograd function (x (N, 3), table (entries, F)) -> features (N, L*F).

    Its backward pass computes the gradient of x only if it is needed.
    """

    @staticmethod
    def forward(ctx: _Context, x: Tensor, table: Tensor, levels: Levels, kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.setup = levels, kernels
        return kernels.encode(x, table, levels)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, table), setup = ctx.saved_tensors, ctx.setup
        grad_x = PositionGradient.apply(x, table, grad, *setup) if ctx.needs_input_grad[0] else None
        grad_table = TableGradient.apply(x, grad, *setup) if ctx.needs_input_grad[1] else None
        return grad_x, grad_table, None, None


class TableGradient(Function):
    """Autograd function (x (N, 3), gradient of the features (N, L*F)) -> gradient of the table (entries, F)."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, grad: Tensor, levels: Levels, kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.setup = levels, kernels
        return kernels.scatter(x, grad, levels)

    @staticmethod
    def backward(ctx: _Context, grad_table: Tensor) -> tuple[Tensor | None, ...]:
        (x, grad), setup = ctx.saved_tensors, ctx.setup
        grad_x = PositionGradient.apply(x, grad_table, grad, *setup) if ctx.needs_input_grad[0] else None
        grad_grad = Encode.apply(x, grad_table, *setup) if ctx.needs_input_grad[1] else None
        return grad_x, grad_grad, None, None


class PositionGradient(Function):
    """Autograd function (x (N, 3), table (entries, F), gradient of the features (N, L*F)) -> gradient of x (N, 3).

    The result can be differentiated once more.
    """

    @staticmethod
    def forward(ctx: _Context, x: Tensor, table: Tensor, grad: Tensor, levels: Levels, kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(x, table, grad)
        ctx.setup = levels, kernels
        return kernels.position_gradient(x, table, grad, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, direction: Tensor) -> tuple[Tensor | None, ...]:
        x, table, grad = ctx.saved_tensors
        needs, (levels, kernels), grad_x = ctx.needs_input_grad, ctx.setup, None
        if needs[0]:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                features = torch_twin.encode(leaf, table.detach(), levels)
                gradient = torch.autograd.grad(features, leaf, grad.detach(), create_graph=True)[0]
            grad_x = torch.autograd.grad(gradient, leaf, direction)[0]
        grad_table = kernels.scatter(x, grad, levels, direction) if needs[1] else None
        grad_grad = kernels.encode(x, table, levels, direction) if needs[2] else None
        return grad_x, grad_table, grad_grad, None, None
