"""Losses of a render that every representation has, registered as regularisers. `losses` defines them."""

from torch import Tensor

from . import losses
from .base import Render


def orientation(render: Render) -> Tensor:
    """Return the orientation loss (`losses.orientation`). Raises ValueError for a render without normals."""
    if render.orientation is None:
        raise ValueError("the orientation loss needs a render with normals")
    return losses.orientation(render.orientation, render.opacity)


def sparsity(render: Render) -> Tensor:
    """Return the mean of sqrt(opacity^2 + 0.01), which reduces the visible density."""
    return losses.sparsity(render.opacity)


def opaque(render: Render) -> Tensor:
    """Return the mean binary entropy of the opacity, which penalises half-transparent rays."""
    return losses.opaque(render.opacity)


def z_variance(render: Render) -> Tensor:
    """Return the mean depth variance of the rays with opacity above 0.5, which makes surfaces thin."""
    return losses.z_variance(render.z_variance, render.opacity)
