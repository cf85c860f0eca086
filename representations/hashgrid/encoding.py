"""Position encodings of fields: hash grid and frequencies."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from threedgen.representations.backends import load
from threedgen.representations.options import FrequencyConfig, HashGridConfig

from .autograd import Differentiable
from .torch_twin import grid_levels


class Encoding(Protocol):
    """Map of points (N, 3) in [0, 1]^3 to features (N, output_dim)."""

    output_dim: int

    def __call__(self, x: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


MODULES = {
    "torch": "threedgen.representations.hashgrid.torch_twin",
    "numba": "threedgen.representations.hashgrid.numba_kernels",
    "triton": "threedgen.representations.hashgrid.triton_kernels",
    "tinycudann": "threedgen.representations.hashgrid.tinycudann_grid",
}
"""Import path of each back end's module, with the functions encode and position_gradient.

Modules that also have scatter are kernels without autograd; `Differentiable` wraps them.
"""

VARYING = ("triton",)
"""Back ends whose table gradients vary in the last bits between runs, because atomic additions have no fixed order."""


def position_gradient(encoding: Encoding, x: Tensor, grad: Tensor) -> Tensor:
    """Return the vector-Jacobian product (N, 3) of an encoding at points x (N, 3) with `grad` (N, output_dim).

    If grad mode is on, it is differentiable in `grad` and in the encoding's parameters; x is constant. An encoding may
    have a faster method of the same name, which is used instead of autograd.
    """
    method = getattr(encoding, "position_gradient", None)
    if method is not None:
        return method(x, grad)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(encoding(leaf), leaf, grad, create_graph=create_graph)[0]


class HashGrid(nn.Module):
    """Multi-resolution hash grid with L levels and one parameter `table` (entries, F).

    The features (N, L*F) are ordered by level: l0f0, l0f1, l1f0, ... Points outside [0, 1]^3 are clamped. The grid is
    differentiable twice. The table is initialised to U(-1e-4, 1e-4) with `generator` (CPU), or with torch's global
    generator.
    """

    def __init__(self, options: HashGridConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = o = options or HashGridConfig()
        self.levels = grid_levels(o.n_levels, o.log2_hashmap_size, o.base_resolution, o.per_level_scale)
        self.output_dim = o.n_levels * o.n_features
        table = torch.rand(self.levels.entries, o.n_features, generator=generator)
        self.table = nn.Parameter((2 * table - 1) * 1e-4)

    def backend(self) -> Any:
        """Return an object with the functions encode and position_gradient. Raises ConfigError, see `backends.load`."""
        module: Any = load(MODULES, self.options.backend, self.table.device, self.table.dtype, VARYING)
        return Differentiable(module) if hasattr(module, "scatter") else module

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, L*F) of points x (N, 3) in [0, 1]^3."""
        return self.backend().encode(x.to(self.table.dtype), self.table, self.levels)

    def position_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return the vector-Jacobian product (N, 3), see the function `position_gradient`."""
        return self.backend().position_gradient(x.detach().to(self.table.dtype), self.table, grad, self.levels)


class Frequency(nn.Module):
    """Frequency encoding: sin(2^k x) and cos(2^k x) of the three coordinates for k = 0 to n_octaves - 1."""

    def __init__(self, options: FrequencyConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = options or FrequencyConfig()
        self.output_dim = 6 * self.options.n_octaves

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, 6 n_octaves) of points x (N, 3) in [0, 1]^3, ordered by k; sines before cosines."""
        waves = [wave(x * 2.0**octave) for octave in range(self.options.n_octaves) for wave in (torch.sin, torch.cos)]
        return torch.cat(waves, dim=-1)
