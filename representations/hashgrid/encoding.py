"""Position encodings: hash grid and frequencies."""

from __future__ import annotations

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
"""Modules with encode and position_gradient. Those with scatter are kernels without autograd, see `Differentiable`."""

VARYING = ("triton",)
"""Back ends whose gradients of the table vary in the last bits between runs: they add in any order (atomics)."""


def position_gradient(encoding: Encoding, x: Tensor, grad: Tensor) -> Tensor:
    """Return d<grad, encoding(x)>/dx (N, 3) for x (N, 3) and grad (N, output_dim).

    Differentiable in the encoding's parameters and in grad if grad mode is on; x is constant. Uses the encoding's
    method of this name if it has one (faster), else autograd.
    """
    method = getattr(encoding, "position_gradient", None)
    if method is not None:
        return method(x, grad)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(encoding(leaf), leaf, grad, create_graph=create_graph)[0]


class HashGrid(nn.Module):
    """Multi-resolution hash grid with one parameter `table` (entries, F), initialised to U(-1e-4, 1e-4).

    The output (N, L*F) is ordered by level: l0f0, l0f1, l1f0, ... Points outside [0, 1]^3 are clamped. Twice
    differentiable. The table is initialised with `generator` (CPU), or torch's global one.
    """

    def __init__(self, options: HashGridConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = o = options or HashGridConfig()
        self.levels = grid_levels(o.n_levels, o.log2_hashmap_size, o.base_resolution, o.per_level_scale)
        self.output_dim = o.n_levels * o.n_features
        table = torch.rand(self.levels.entries, o.n_features, generator=generator)
        self.table = nn.Parameter((2 * table - 1) * 1e-4)

    def backend(self) -> Any:
        """Return the back end with encode and position_gradient, see `backends.load`. Raises ConfigError."""
        module: Any = load(MODULES, self.options.backend, self.table.device, self.table.dtype, VARYING)
        return Differentiable(module) if hasattr(module, "scatter") else module

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, L*F) of points (N, 3)."""
        return self.backend().encode(x.to(self.table.dtype), self.table, self.levels)

    def position_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """See the function `position_gradient`."""
        return self.backend().position_gradient(x.detach().to(self.table.dtype), self.table, grad, self.levels)


class Frequency(nn.Module):
    """Frequency encoding: sin(2^k x), cos(2^k x) of the three coordinates for octaves k = 0, 1, ..."""

    def __init__(self, options: FrequencyConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = options or FrequencyConfig()
        self.output_dim = 6 * self.options.n_octaves

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, 6 n_octaves) of points (N, 3)."""
        waves = [wave(x * 2.0**octave) for octave in range(self.options.n_octaves) for wave in (torch.sin, torch.cos)]
        return torch.cat(waves, dim=-1)
