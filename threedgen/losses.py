"""Regularisers of a rendered field: pure functions of what the renderer returns, each a scalar >= 0."""

from __future__ import annotations

import torch
from torch import Tensor


def orientation(weights: Tensor, normals: Tensor, directions: Tensor, opacity: Tensor) -> Tensor:
    """Penalty on visible matter that faces away from the camera (Verbin et al. 2022, "Ref-NeRF", eq. 11).

    weights (N,), normals and unit ray directions (N, 3) of the samples, opacity (R, 1) of the rays. The
    weights are constants here, so that matter turns round instead of vanishing; the sum is divided by the
    number of rays that meet any matter.
    """
    away = (normals * directions).sum(-1).clamp(min=0)
    rays = (opacity > 0).sum().clamp(min=1)
    return (weights.detach() * away * away).sum() / rays


def sparsity(opacity: Tensor) -> Tensor:
    """Mean of sqrt(opacity^2 + 0.01): less matter in sight. Between 0.1 and about 1."""
    return (opacity * opacity + 0.01).sqrt().mean()


def opaque(opacity: Tensor) -> Tensor:
    """Mean binary entropy of the opacity, clamped to [0.001, 0.999]: rays hit or miss, nothing in between."""
    o = opacity.clamp(1e-3, 1 - 1e-3)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def z_variance(variance: Tensor, opacity: Tensor, threshold: float = 0.5) -> Tensor:
    """Mean spread of matter along the rays (R, 1) whose opacity exceeds the threshold: thin surfaces, no fog.

    Zero, not NaN, if there is no such ray (HiFA, Zhu et al. 2023).
    """
    solid = opacity > threshold
    return torch.where(solid, variance, torch.zeros_like(variance)).sum() / solid.sum().clamp(min=1)
