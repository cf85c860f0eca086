"""Ray marching and compositing in plain PyTorch, for all devices.

The memory is proportional to rays x maximum number of samples per ray.
"""

import torch
from torch import Tensor

from threedgen.representations.backends import cumsum
from threedgen.representations.volume.options import MarchConfig

from . import Composite, Samples, max_samples_per_ray, pack


def place(origins: Tensor, directions: Tensor, spans: Tensor, options: MarchConfig, grid: Tensor | None) -> Samples:
    limit = int(max_samples_per_ray(spans).max()) if len(spans) else 0
    k = torch.arange(limit + 1, dtype=torch.float32, device=origins.device)
    edges = spans[:, :1] + k * spans[:, 2:]
    t_start, t_end = edges[:, :-1], edges[:, 1:]
    t_mid = 0.5 * (t_start + t_end)
    keep = t_mid < spans[:, 1:2]
    if grid is not None:
        points = origins[:, None] + t_mid[..., None] * directions[:, None]
        scale = torch.tensor(len(grid) / (2 * options.radius), dtype=torch.float32, device=points.device)
        cell = ((points + options.radius) * scale).long().clamp(0, len(grid) - 1)
        keep &= grid[cell[..., 0], cell[..., 1], cell[..., 2]]
    return pack(keep.nonzero()[:, 0], t_start[keep], t_end[keep], len(origins))


def composite(sigma: Tensor, values: Tensor, samples: Samples) -> Composite:
    weights, _, _ = _weights(sigma, samples)
    return Composite(
        samples.sum(weights[:, None] * values),
        samples.sum(weights)[:, None],
        samples.sum(weights * samples.t_mid)[:, None],
        weights,
    )


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float) -> Tensor:
    _, transmittance, alpha = _weights(sigma, samples)
    return (transmittance >= early_stop) & (alpha >= alpha_threshold)


def _weights(sigma: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    # for each sample its weight, the transmittance in front of it, and its alpha, (N,) each
    max_count = int(samples.count.max()) if samples.n_rays else 0
    slot = torch.arange(len(samples), device=sigma.device) - samples.start[samples.ray_index]
    where = (samples.ray_index, slot)
    optical = sigma * (samples.t_end - samples.t_start)
    dense = optical.new_zeros((samples.n_rays, max_count)).index_put(where, optical)
    transmittance = torch.exp(dense - cumsum(dense, 1))[where]
    alpha = 1 - torch.exp(-optical)
    return transmittance * alpha, transmittance, alpha
