"""torch back end of marching and compositing: all devices, any order of derivative, memory (R, samples per ray)."""

import torch
from torch import Tensor

from threedgen.representations.options import MarchConfig
from threedgen.representations.scan import cumsum

from . import Composite, Samples, pack, step_size


def march(
    origins: Tensor, directions: Tensor, options: MarchConfig, grid: Tensor | None, jitter: Tensor | None
) -> Samples:
    """Place samples on R rays, as `march.march` does, by testing every step of every ray."""
    first, leave, steps = spans(origins, directions, options, jitter)
    limit = int(max_samples_per_ray(first, leave, steps, options).max()) if len(first) else 0

    k = torch.arange(limit + 1, dtype=torch.float32, device=origins.device)
    edges = first[:, None] + k * steps[:, None]
    t_start, t_end = edges[:, :-1], edges[:, 1:]
    t_mid = 0.5 * (t_start + t_end)
    keep = t_mid < leave[:, None]
    if grid is not None:
        keep &= occupied(grid, origins[:, None] + t_mid[..., None] * directions[:, None], options.radius)
    return pack(keep.nonzero()[:, 0], t_start[keep], t_end[keep], len(origins))


def spans(
    origins: Tensor, directions: Tensor, options: MarchConfig, jitter: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first sample, the exit from the bounding volume, and the step of each ray: three distances (R,).

    Sample k covers [first + k * step, first + (k + 1) * step]. A ray that misses the bounding volume has exit <= first.
    """
    enter, leave = (sphere_chord if options.bound == "sphere" else box_chord)(origins, directions, options.radius)
    enter = enter.clamp(min=options.near)
    if options.sampler == "stratified":
        steps = (leave - enter).clamp(min=0) / options.samples
    else:
        steps = torch.full_like(enter, step_size(options))
    return (enter if jitter is None else enter + jitter * steps), leave, steps


def max_samples_per_ray(first: Tensor, leave: Tensor, steps: Tensor, options: MarchConfig) -> Tensor:
    """Return an upper bound (R,) int64 of the number of samples on each ray, for the distances (R,) from `spans`."""
    count = (((leave - first) / steps).long() + 1) * (leave > first)
    return count.clamp(max=options.samples) if options.sampler == "stratified" else count


def box_chord(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Return distances (R,) at which rays enter and leave the cube [-radius, radius]^3; leave <= enter for a miss."""
    tiny = torch.full_like(directions, 1e-12)
    safe = torch.where(directions.abs() < 1e-12, tiny, directions)  # ray parallel to a side: huge, not NaN
    first = (-radius - origins) / safe
    second = (radius - origins) / safe
    return torch.minimum(first, second).amax(-1), torch.maximum(first, second).amin(-1)


def sphere_chord(origins: Tensor, directions: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Return the distances (R,) at which rays with unit directions enter and leave the ball; equal for a miss."""
    projection = _dot(origins, directions)
    nearest = origins - projection[:, None] * directions  # nearest point to the centre: no cancellation far away
    size = origins.new_tensor(radius)
    squared = (size * size - _dot(nearest, nearest)).clamp(min=0)
    half = squared.double().sqrt().float()  # correctly rounded, unlike torch's float32 sqrt
    return -projection - half, -projection + half


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot products (R,), summed in the kernels' order for equal rounding."""
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def occupied(grid: Tensor, points: Tensor, radius: float) -> Tensor:
    """Return the bool values (...) of grid (G, G, G) over [-radius, radius]^3 in the cells of points (..., 3)."""
    size = grid.shape[0]
    scale = torch.tensor(size / (2 * radius), dtype=torch.float32)
    cell = ((points + radius) * scale.to(points.device)).long().clamp(0, size - 1)
    return grid[cell[..., 0], cell[..., 1], cell[..., 2]]


def positions(samples: Samples, origins: Tensor, directions: Tensor) -> Tensor:
    """Return world points (N, 3) at the midpoints, for ray origins and unit directions (R, 3)."""
    with torch.no_grad():
        index = samples.ray_index
        return origins.index_select(0, index) + samples.t_mid[:, None] * directions.index_select(0, index)


def composite(sigma: Tensor, values: Tensor, samples: Samples) -> Composite:
    """Composite values (N, C) along rays with densities `sigma` (N,), as `march.composite` does."""
    weights, _, _ = _weights(sigma, samples)
    return Composite(
        samples.sum(weights[:, None] * values),
        samples.sum(weights)[:, None],
        samples.sum(weights * samples.t_mid)[:, None],
        weights,
    )


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float) -> Tensor:
    """Return the bool mask (N,) of samples whose alpha and transmittance reach the thresholds (`march.visible`)."""
    _, transmittance, alpha = _weights(sigma, samples)
    return (transmittance >= early_stop) & (alpha >= alpha_threshold)


def _weights(sigma: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each sample the weight, the transmittance in front of it, and alpha, (N,) each."""
    max_count = int(samples.count.max()) if samples.n_rays else 0
    slot = torch.arange(len(samples), device=sigma.device) - samples.start[samples.ray_index]
    where = (samples.ray_index, slot)
    optical = sigma * (samples.t_end - samples.t_start)
    dense = optical.new_zeros((samples.n_rays, max_count)).index_put(where, optical)
    transmittance = torch.exp(dense - cumsum(dense, 1))[where]
    alpha = 1 - torch.exp(-optical)
    return transmittance * alpha, transmittance, alpha
