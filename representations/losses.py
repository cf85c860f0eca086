"""Regularisation losses of a rendered field. Each loss is a pure function of tensors and returns a scalar >= 0."""

from collections.abc import Callable

import torch
from torch import Tensor

from threedgen.representations.scan import cumsum


def orientation_terms(weights: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
    """Return the orientation penalty (N,) of each sample: w max(0, n . d)^2.

    The normals n (N, 3) and the ray directions d (N, 3) are unit vectors. The weights w (N,) are detached, so that the
    loss rotates normals and does not remove density.
    """
    cosine = (normals * directions).sum(-1).clamp(min=0)
    return weights.detach() * cosine * cosine


def orientation(terms: Tensor, opacity: Tensor) -> Tensor:
    """Return the orientation loss, a penalty on normals that point away from the camera (Ref-NeRF, eq. 11).

    `terms` are the `orientation_terms` of the samples (N,), or their sums over each ray (R, 1). The loss is their sum
    divided by the number of rays whose opacity (R, 1) is above 0.
    """
    return terms.sum() / (opacity > 0).sum().clamp(min=1)


def sparsity(opacity: Tensor) -> Tensor:
    """Return the mean of sqrt(opacity^2 + 0.01) for opacity (R, 1), in [0.1, 1.005]. It reduces the visible density."""
    return (opacity * opacity + 0.01).sqrt().mean()


def opaque(opacity: Tensor) -> Tensor:
    """Return the mean binary entropy of opacities (R, 1), clamped to [0.001, 0.999]. It drives them to 0 or 1."""
    o = opacity.clamp(1e-3, 1 - 1e-3)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def normal_smoothness(normal: Callable[[Tensor], Tensor], points: Tensor, offsets: Tensor) -> Tensor:
    """Return the mean of |n(x) - n(x + offset)|^2, a penalty on bumps; 0 if there are no points.

    `normal` maps points (N, 3) to unit normals (N, 3). Points and offsets (N, 3) are in world units.
    """
    return (normal(points) - normal(points + offsets)).square().sum(-1).mean() if len(points) else points.sum()


def z_variance(variance: Tensor, opacity: Tensor, threshold: float = 0.5) -> Tensor:
    """Return the mean depth variance (R, 1) of the rays with opacity (R, 1) above the threshold; 0 without such rays.

    It makes surfaces thin and removes haze (HiFA, Zhu et al. 2023).
    """
    solid = opacity > threshold
    return torch.where(solid, variance, torch.zeros_like(variance)).sum() / solid.sum().clamp(min=1)


def eikonal(error: Tensor, samples: int) -> Tensor:
    """Return the eikonal loss, the mean of (|grad f| - 1)^2 over all `samples` samples (Gropp et al. 2020, "IGR").

    `error` holds (|grad f| - 1)^2 of each sample (N,), or the sums over each ray (R, 1).
    """
    return error.sum() / max(1, samples)


def distortion(
    weights: Tensor, t_start: Tensor, t_end: Tensor, ray_index: Tensor, start: Tensor, span: float = 1.0
) -> Tensor:
    """Return the distortion loss, the spread of the weights along a ray (Mip-NeRF 360, eq. 15), as the mean over rays.

    Per ray: sum_ij w_i w_j |m_i - m_j| + sum_i w_i^2 d_i / 3, with the midpoints m and lengths d of the intervals in
    units of `span`. Prefix sums make the cost linear in N.

    Args:
        weights: (N,) compositing weights of packed samples.
        t_start, t_end, ray_index, start: attributes of `march.Samples`.
        span: distance between near and far plane, in world units.
    """
    middle, length = (t_start + t_end) / (2 * span), (t_end - t_start) / span

    def prefix_sum(values: Tensor) -> Tensor:
        """Return the exclusive prefix sums (N,) of values (N,) within each ray."""
        total = cumsum(values.double(), 0) - values.double()  # in double precision: the sums run over all rays
        first = total[start.clamp(max=max(0, len(total) - 1))] if len(total) else total
        return (total - first[ray_index]).to(values)

    pairs = 2 * weights * (middle * prefix_sum(weights) - prefix_sum(weights * middle))
    return (pairs + weights * weights * length / 3).sum() / max(1, len(start))
