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

    `grad` has the shape of encoding(x), one row of features per point. In grad mode the result is differentiable in
    `grad` and in the encoding's parameters.
    """
    if isinstance(encoding, HashGrid) and has_kernels(module := encoding.backend()):
        x = x.detach().to(encoding.table.dtype)
        return PositionGradient.apply(x, encoding.table, grad, encoding.levels, module)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(encoding(leaf), leaf, grad, create_graph=create_graph)[0]


class HashGrid(nn.Module):
    """Multi-resolution hash grid (Instant NGP), a position encoding of L levels with F features each.

    `forward` maps points (N, 3) in [0, 1]^3 to features (N, L*F), ordered by level: l0f0, l0f1, l1f0, ... Points
    outside are clamped. The features are differentiable twice.

    `options` has the number and size of the levels. The CPU generator `generator` initialises the parameter `table`
    (entries, F) to U(-1e-4, 1e-4); None: torch's global generator. An encoding in a plug-in needs the same constructor
    arguments, the method `forward`, and the attribute `output_dim`, the number of features.
    """

    def __init__(self, options: HashGridConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = o = options or HashGridConfig()
        self.levels = grid_levels(o.n_levels, o.log2_hashmap_size, o.base_resolution, o.per_level_scale)
        self.output_dim = o.n_levels * o.n_features
        table = torch.rand(self.levels.entries, o.n_features, generator=generator)
        self.table = nn.Parameter((2 * table - 1) * 1e-4)

    def backend(self) -> ModuleType:
        """Return the module with the kernels (such as numba or Triton) for the device and dtype of the table.

        Raises ConfigError if the kernels that the options select are not installed, cannot be imported, or do not
        support this device and dtype.
        """
        name = self.options.backend
        if name == "auto" and self.table.is_cuda and requires_deterministic():
            name = "torch"  # the atomic additions of the triton kernels have no fixed order
        return load(MODULES, name, self.table.device, self.table.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, L*F) of points x (N, 3) in [0, 1]^3, for L levels with F features each."""
        return encode(x.to(self.table.dtype), self.table, self.levels, self.backend())


# --- autograd of the kernels (numba_kernels.py explains the algebra)
# Analytic normals are gradients with respect to x, so a loss on normals needs second derivatives: gradients are
# Functions too. Shapes: points x (N, 3), table (entries, F), features and their gradients (N, L*F) for L levels.


def has_kernels(module: ModuleType) -> bool:
    return hasattr(module, "scatter")


def encode(x: Tensor, table: Tensor, levels: Levels, module: ModuleType) -> Tensor:
    """Return hash grid features (N, L*F) of points x (N, 3) in [0, 1]^3, for L levels with F features each.

    `table` (entries, F) has the features of all levels, `levels` the resolution and the first table entry of each
    level. `module` is a back end of the hash grid: a Python module of this package, such as `torch_twin`, with a
    function `encode`. The features are differentiable twice in x and in the table.
    """
    return Encode.apply(x, table, levels, module) if has_kernels(module) else module.encode(x, table, levels)


class _Context(FunctionCtx):
    setup: tuple[Levels, ModuleType]
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]


class Encode(Function):
    """Autograd function of a hash grid: `Encode.apply(x, table, levels, kernels)` -> features (N, L*F).

    x (N, 3) are points in [0, 1]^3, and the table (entries, F) has F features per entry. `levels` describes the L
    levels: resolution and first table entry of each. `kernels` is the module of the back end. The backward pass
    computes the gradient of x only if it is needed.
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
    """Autograd function for the gradient of a hash grid's table: `TableGradient.apply(x, grad, levels, kernels)`.

    It returns the gradient (entries, F) of a loss with respect to the table. `grad` (N, L*F) is the gradient of the
    loss with respect to the features of the points x (N, 3), `levels` describes the L levels and their table entries,
    and `kernels` is the module of the back end.
    """

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
    """Autograd function for the gradient of points: `PositionGradient.apply(x, table, grad, levels, kernels)`.

    It returns the gradient (N, 3) of a loss with respect to the points x (N, 3). `grad` (N, L*F) is the gradient of the
    loss with respect to their hash grid features. The table is (entries, F), `levels` describes the L levels and their
    table entries, and `kernels` is the module of the back end. The result can be differentiated once more.
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
