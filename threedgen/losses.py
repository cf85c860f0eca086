"""Regularisers of a rendered field: pure functions of what the renderer returns, each a scalar >= 0."""

from __future__ import annotations

import torch
from torch import Tensor


def facing_away(weights: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
    """How much visible matter faces away from the camera, sample by sample (N,): w max(0, n . d)^2.

    weights (N,), normals and unit ray directions (N, 3). The weights are constants here, so that matter turns round
    instead of vanishing.
    """
    away = (normals * directions).sum(-1).clamp(min=0)
    return weights.detach() * away * away


def orientation(away: Tensor, opacity: Tensor) -> Tensor:
    """Penalty on visible matter that faces away from the camera (Verbin et al. 2022, "Ref-NeRF", eq. 11).

    away: `facing_away`, of the samples or summed over each ray; opacity (R, 1) of the rays. The sum is divided by the
    number of rays that meet any matter.
    """
    return away.sum() / (opacity > 0).sum().clamp(min=1)


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
