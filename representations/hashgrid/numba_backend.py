"""The numba kernels as functions of tensors: float32 on the CPU.

Features (N, L*F) have the memory order of (L*F, N), which both the kernels and matrix products like.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import numba_kernels as kernels
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


def encode(x: Tensor, table: Tensor, levels: Levels, direction: Tensor | None = None) -> Tensor:
    """Features (N, L*F) of points x (N, 3), or their derivative along direction (N, 3)."""
    out = torch.empty(len(levels.scale) * table.shape[1], len(x))
    along = _NO_DIRECTION if direction is None else _columns(direction)
    _run(kernels.encode, levels, table.shape[1], out, _columns(x), along, _flat(table))
    return out.t()


def scatter(x: Tensor, grad: Tensor, levels: Levels, direction: Tensor | None = None) -> Tensor:
    """Gradient of the table (entries, F) for grad (N, L*F), or its derivative along direction (N, 3)."""
    n_features = grad.shape[1] // len(levels.scale)
    out = torch.empty(levels.entries * n_features)
    along = _NO_DIRECTION if direction is None else _columns(direction)
    _run(kernels.scatter, levels, n_features, out, _columns(x), along, _columns(grad))
    return out.view(-1, n_features)


def position_gradient(x: Tensor, table: Tensor, grad: Tensor, levels: Levels) -> Tensor:
    """d<grad, encode(x)>/dx, (N, 3), for grad (N, L*F)."""
    out = torch.empty(3, len(x))
    _run(kernels.position_gradient, levels, table.shape[1], out, _columns(x), _flat(table), _columns(grad))
    return out.t()
