"""Regularisation losses of a render and of a mesh. Each returns a differentiable scalar >= 0."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import normalize

from .backends import cumsum
from .base import Render


def orientation_terms(weights: Tensor, normals: Tensor, directions: Tensor) -> Tensor:
    """Return w max(0, n . d)^2 (N,), a penalty on normals of visible samples that face away from the camera (Ref-NeRF).

    w (N,) are the compositing weights, which get no gradient, n (N, 3) unit normals and d (N, 3) unit ray directions.
    """
    cosine = (normals * directions).sum(-1).clamp(min=0)
    return weights.detach() * cosine * cosine


def orientation(render: Render) -> Tensor:
    """Return the orientation loss (Ref-NeRF, eq. 11), as the mean over the rays with an opacity above 0.

    Per ray, it is the sum over the samples of w max(0, n . d)^2, with weight w, normal n and ray direction d. Raises
    ValueError if the render has no normals.
    """
    if render.orientation is None:
        raise ValueError("the orientation loss needs a render with normals")
    return render.orientation.sum() / (render.opacity > 0).sum().clamp(min=1)


def sparsity(render: Render) -> Tensor:
    """Return the mean of sqrt(opacity^2 + 0.01), in [0.1, 1.005]. It reduces the visible density."""
    return (render.opacity * render.opacity + 0.01).sqrt().mean()


def opaque(render: Render) -> Tensor:
    """Return the mean over the rays of the binary entropy of the opacity. It drives opacities to 0 or 1.

    Opacities are first clamped to [0.001, 0.999].
    """
    o = render.opacity.clamp(1e-3, 1 - 1e-3)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def z_variance(render: Render) -> Tensor:
    """Return the mean depth variance, in square world units, of the rays with an opacity above 0.5 (HiFA).

    Mean and variance of a ray's depth use its weights divided by their sum, the opacity. So the variance is low for
    thin surfaces, also for translucent ones.
    """
    solid = render.opacity > 0.5
    opacity = torch.where(solid, render.opacity, 1.0)
    square = render.z_variance + render.depth.square() * (2 - opacity)  # sum of weight * distance^2
    variance = (square / opacity - (render.depth / opacity).square()).clamp(min=0)  # below 0: rounding
    return torch.where(solid, variance, 0.0).sum() / solid.sum().clamp(min=1)


def eikonal(render: Render) -> Tensor:
    """Return the eikonal loss of a distance field f: the mean of (|grad f| - 1)^2 over all samples (IGR).

    Raises ValueError if the render is not of a distance field.
    """
    if render.eikonal is None:
        raise ValueError("the eikonal loss needs a render of a distance field")
    return render.eikonal.sum() / max(1, render.n_samples)


def distortion(render: Render, span: float) -> Tensor | None:
    """Return the distortion loss (Mip-NeRF 360, eq. 15), the spread of the weights along a ray, as the mean over rays.

    Per ray: sum_ij w_i w_j |m_i - m_j| + sum_i w_i^2 d_i / 3, with the midpoints m and lengths d of the samples in
    units of `span`, the length far - near in world units of the sampled part of a ray. Returns None for a render that
    marched no rays, as for a mesh, or that has no weights because it was computed in chunks.
    """
    weights, s = render.weights, render.samples
    if weights is None or s is None:
        return None
    if not len(s):  # one weight, of a sample of length 0, keeps the graph
        return 0 * weights.sum()
    dtype = torch.float64 if weights.is_cpu else torch.float32  # float64 is slow on most GPUs

    def from_first(values: Tensor) -> Tensor:
        # values (N + 1,) minus the value at the first sample of the ray; a last ray without samples has start N
        return values[:-1] - values.index_select(0, s.start).index_select(0, s.ray_index)

    def prefix_sum(values: Tensor) -> Tensor:
        # the sums run over all rays; behind each ray its total is subtracted, so that they stay small for float32
        padded = F.pad(values.to(dtype), (0, 1))
        closed = padded.index_add(0, s.start + s.count, -s.sum(values.detach()).to(dtype))
        return from_first(cumsum(closed, 0) - padded).to(values)

    # distances from the first sample, as differences of large distances would cancel
    middle, length = from_first(F.pad(s.t_mid / span, (0, 1))), (s.t_end - s.t_start) / span
    pairs = 2 * weights * (middle * prefix_sum(weights) - prefix_sum(weights * middle))
    return (pairs + weights * weights * length / 3).sum() / max(1, s.n_rays)


def normal_smoothness(normal: Callable[[Tensor], Tensor], points: Tensor, offsets: Tensor) -> Tensor:
    """Return the mean of |n(x) - n(x + offset)|^2 over N points x, a penalty on bumps; 0 if N = 0.

    `normal` is the function n from points (M, 3) to unit normals (M, 3). `points` and `offsets` are (N, 3) in world
    units.
    """
    return (normal(points) - normal(points + offsets)).square().sum(-1).mean() if len(points) else points.sum()


def total_variation(colour: Callable[[Tensor], Tensor], points: Tensor, offsets: Tensor, limit: float) -> Tensor:
    """Return the mean of min(|c(x) - c(x + offset)|, limit) over N points x and all channels; 0 if N = 0.

    It is a penalty on grain in the colours: on differences below `limit`. Borders between two colours that differ by
    more have no gradient, so they stay sharp (as the weak membrane of Blake and Zisserman 1987).

    Args:
        colour: the function c from points (M, 3) to colours (M, C).
        points, offsets: (N, 3) in world units.
    """
    return (colour(points) - colour(points + offsets)).abs().clamp(max=limit).mean() if len(points) else points.sum()


# --- meshes with vertices (N, 3) in world units and faces (F, 3) int64


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return unit vertex normals (N, 3) of a mesh: area-weighted means over the adjacent faces.

    `vertices` are (N, 3), `faces` (F, 3) vertex indices. A vertex without a face gets the zero vector.
    """
    a, b, c = (vertices.index_select(0, faces[:, k]) for k in range(3))
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for k in range(3):
        total = total.index_add(0, faces[:, k], normal)
    return normalize(total, dim=-1)


def normal_consistency(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return the mean over all edges of 1 - cos(angle between the vertex normals at the two ends); 0 for a plane.

    `vertices` are (N, 3), `faces` (F, 3) vertex indices.
    """
    normals = vertex_normals(vertices, faces)
    a, b = (normals.index_select(0, end) for end in _edge_ends(faces))
    return (1 - (a * b).sum(-1)).mean()


def laplacian(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return the mean distance between a vertex and the mean of its neighbours, in world units.

    `vertices` are (N, 3), `faces` (F, 3) vertex indices.
    """
    one, other = _edge_ends(faces)
    a, b = torch.cat([one, other]), torch.cat([other, one])
    total = torch.zeros_like(vertices).index_add(0, a, vertices.index_select(0, b))
    count = a.new_zeros(len(vertices)).index_add_(0, a, torch.ones_like(a)).clamp(min=1)[:, None]  # bincount would wait
    return torch.linalg.vector_norm(total / count - vertices + 1e-12, dim=-1).mean()


def _edge_ends(faces: Tensor) -> tuple[Tensor, Tensor]:
    # vertex indices of the two ends of all edges, (3 F,) each; an edge between two faces occurs twice
    one, other = torch.stack([faces, faces.roll(-1, 1)]).reshape(2, -1)
    return one, other
