"""Regularisers of a rendered field: pure functions of what the renderer returns, each a scalar >= 0."""

from __future__ import annotations

from collections.abc import Callable

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


def roughness(normal: Callable[[Tensor], Tensor], points: Tensor, offsets: Tensor) -> Tensor:
    """Mean of |n(x) - n(x + offset)|^2 over points and offsets (N, 3): surfaces without dents."""
    return (normal(points) - normal(points + offsets)).square().sum(-1).mean() if len(points) else points.sum()


def z_variance(variance: Tensor, opacity: Tensor, threshold: float = 0.5) -> Tensor:
    """Mean spread of matter along the rays (R, 1) whose opacity exceeds the threshold: thin surfaces, no fog.

    Zero, not NaN, if there is no such ray (HiFA, Zhu et al. 2023).
    """
    solid = opacity > threshold
    return torch.where(solid, variance, torch.zeros_like(variance)).sum() / solid.sum().clamp(min=1)


def eikonal(error: Tensor, samples: int) -> Tensor:
    """Mean of (|grad f| - 1)^2 over the samples: a distance grows by as much as one moves (Gropp et al. 2020, "IGR").

    error: of each sample, or summed over each ray, for so many samples in all.
    """
    return error.sum() / max(1, samples)


def distortion(
    weights: Tensor, t_start: Tensor, t_end: Tensor, ray_index: Tensor, start: Tensor, span: float = 1.0
) -> Tensor:
    """How far the matter of a ray is spread along it, mean over the rays (Barron et al. 2022, "Mip-NeRF 360", eq. 15).

    Of each ray: sum_ij w_i w_j |m_i - m_j| + sum_i w_i^2 d_i / 3, with the midpoints m and lengths d of its intervals
    in units of ``span`` (far - near). Packed samples in ascending order: weights, t_start, t_end, ray_index (N,);
    start (R,), the first sample of each ray. Linear in N: pairs are counted by running sums.
    """
    middle, length = (t_start + t_end) / (2 * span), (t_end - t_start) / span

    def before(values: Tensor) -> Tensor:
        """Sum over the earlier samples of the same ray; in double, for the sums run over all rays."""
        total = values.double().cumsum(0) - values.double()
        first = total[start.clamp(max=max(0, len(total) - 1))] if len(total) else total
        return (total - first[ray_index]).to(values)

    pairs = 2 * weights * (middle * before(weights) - before(weights * middle))
    return (pairs + weights * weights * length / 3).sum() / max(1, len(start))
