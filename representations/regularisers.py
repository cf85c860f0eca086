"""Regularisers of the registry: losses of a render that every representation has. See `losses`."""

from __future__ import annotations

from torch import Tensor

from . import losses
from .base import Render


def orientation(render: Render) -> Tensor:
    """Return the orientation loss. Raises ValueError for a render without normals."""
    if render.orientation is None:
        raise ValueError("the orientation loss needs a render with normals")
    return losses.orientation(render.orientation, render.opacity)


def sparsity(render: Render) -> Tensor:
    """Return the sparsity loss."""
    return losses.sparsity(render.opacity)


def opaque(render: Render) -> Tensor:
    """Return the loss on half-transparent rays."""
    return losses.opaque(render.opacity)


def z_variance(render: Render) -> Tensor:
    """Return the loss on the depth variance."""
    return losses.z_variance(render.z_variance, render.opacity)
