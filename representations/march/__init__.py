"""Ray marching and compositing of packed samples, with several back ends.

The samples of all rays are stored in flat arrays, sorted by ray; `start` and `count` give the range of each ray. Sample
k of a ray covers [t_k, t_k + step] with t_k = entry + (k + jitter) * step. It is kept if its midpoint is inside the
bound and, with a grid, in an occupied cell. All back ends return the same samples, except for nerfacc's rounding at
cell borders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from threedgen.representations.backends import load

if TYPE_CHECKING:
    from threedgen.representations.options import MarchConfig

MODULES = {
    "torch": "threedgen.representations.march.torch_twin",
    "numba": "threedgen.representations.march.numba_kernels",
    "triton": "threedgen.representations.march.triton_kernels",
    "nerfacc": "threedgen.representations.march.nerfacc_backend",
}
"""Modules with march, positions, composite and visible; imported on demand."""


@dataclass(frozen=True)
class Samples:
    """Packed samples of R rays.

    ray_index (N,) int64, ascending; t_start, t_end (N,) float32 distances along the unit direction; start, count (R,)
    int64: the samples of ray r are start[r] : start[r] + count[r].
    """

    ray_index: Tensor
    t_start: Tensor
    t_end: Tensor
    start: Tensor
    count: Tensor

    def __len__(self) -> int:
        return self.ray_index.shape[0]

    @property
    def n_rays(self) -> int:
        return self.start.shape[0]

    @property
    def t_mid(self) -> Tensor:
        """Midpoints of the intervals (N,)."""
        return 0.5 * (self.t_start + self.t_end)

    def intervals(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return t_start, t_end, start and count, contiguous for kernels."""
        return self.t_start.contiguous(), self.t_end.contiguous(), self.start.contiguous(), self.count.contiguous()

    def positions(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Return world points (N, 3) at the interval midpoints of rays (R, 3), without gradient."""
        return backend(self.t_start).positions(self, origins, directions)

    def sum(self, values: Tensor) -> Tensor:
        """Return the differentiable sum of values (N,) or (N, C) over each ray: (R,) or (R, C)."""
        total = values.new_zeros((self.n_rays, *values.shape[1:]))
        return total.index_add(0, self.ray_index, values)

    def select(self, keep: Tensor) -> Samples:
        """Return the samples where keep (N,) bool is True."""
        index = keep.nonzero()[:, 0]
        return pack(
            self.ray_index.index_select(0, index),
            self.t_start.index_select(0, index),
            self.t_end.index_select(0, index),
            self.n_rays,
        )

    def select_rays(self, part: slice) -> Samples:
        """Return the samples of the rays part.start ... part.stop - 1, with ray indices from 0."""
        start, count = self.start[part], self.count[part]
        first, last = (int(start[0]), int(start[-1] + count[-1])) if len(start) else (0, 0)
        return Samples(
            self.ray_index[first:last] - part.start,
            self.t_start[first:last],
            self.t_end[first:last],
            start - first,
            count,
        )

    def split(self, max_samples: int | None) -> list[slice]:
        """Return consecutive slices of rays with at most `max_samples` samples, or one longer ray; None: one slice."""
        if max_samples is None or len(self) <= max_samples:
            return [slice(0, self.n_rays)]
        ends, parts, first, done = self.count.cumsum(0).cpu(), [], 0, 0
        while first < self.n_rays:
            stop = max(first + 1, int(torch.searchsorted(ends, done + max_samples, right=True)))
            parts.append(slice(first, stop))
            first, done = stop, int(ends[stop - 1])
        return parts


def join(groups: Sequence[Samples]) -> Samples:
    """Concatenate the samples of consecutive groups of rays."""
    if len(groups) == 1:
        return groups[0]
    rays = accumulate((len(group.count) for group in groups), initial=0)
    index = torch.cat([group.ray_index + first for group, first in zip(groups, rays, strict=False)])
    count = torch.cat([group.count for group in groups])
    t_start, t_end = (torch.cat([getattr(group, name) for group in groups]) for name in ("t_start", "t_end"))
    return Samples(index, t_start, t_end, count.cumsum(0) - count, count)


class Composite(NamedTuple):
    """Result of compositing: values (R, C), opacity (R, 1), depth (R, 1), weights (N,)."""

    values: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor


def pack(ray_index: Tensor, t_start: Tensor, t_end: Tensor, n_rays: int) -> Samples:
    """Create samples from flat arrays (N,) with ascending ray_index."""
    ray_index = ray_index.long()
    rays = torch.arange(n_rays + 1, device=ray_index.device)
    edges = torch.searchsorted(ray_index, rays)
    return Samples(ray_index, t_start, t_end, edges[:-1], edges[1:] - edges[:-1])


def step_size(options: MarchConfig) -> float:
    """Return the step in world units: the longest chord of the bound divided by `options.samples`."""
    diagonal = math.sqrt(3.0) if options.bound == "box" else 1.0
    return 2.0 * options.radius * diagonal / options.samples


def march(
    origins: Tensor,
    directions: Tensor,
    options: MarchConfig,
    grid: Tensor | None = None,
    jitter: Tensor | None = None,
) -> Samples:
    """Place samples on rays.

    With `sampler: occupancy` the step is `step_size` and empty cells are skipped. With `sampler: stratified` each
    ray's chord is divided into `samples` equal intervals and the grid is ignored.

    Args:
        origins, directions: (R, 3) float32 each, unit directions.
        grid: (G, G, G) bool over [-radius, radius]^3, indexed [x, y, z]; None: no skipping.
        jitter: (R,) in [0, 1), shift of a ray's samples in steps.
    """
    rays = origins.detach().contiguous(), directions.detach().contiguous()
    grid = None if options.sampler == "stratified" else grid
    return backend(origins, options.backend).march(*rays, options, grid, jitter)


def composite(sigma: Tensor, values: Tensor, samples: Samples, name: str = "auto") -> Composite:
    """Composite along rays (NeRF, eq. 3): w_i = T_i (1 - exp(-sigma_i dt_i)), T_i = exp(-sum_(j<i) sigma_j dt_j).

    For sigma (N,) >= 0 and values (N, C), returns sum w v, opacity = sum w, depth = sum w t (not normalised), and w.
    All are differentiable in sigma, the first also in values. Kernels compute in float32 and are differentiable once,
    the torch back end any number of times.
    """
    return backend(sigma, name).composite(sigma, values, samples)


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float, name: str = "auto") -> Tensor:
    """Return a mask (N,): alpha of the sample >= alpha_threshold and transmittance before it >= early_stop."""
    return backend(sigma, name).visible(sigma.detach(), samples, alpha_threshold, early_stop)


def depth_variance(result: Composite, samples: Samples) -> Tensor:
    """Return the depth variance (R, 1): sum w (t - depth)^2 with unnormalised weights (MVDream)."""
    distance = samples.t_mid - result.depth[:, 0].index_select(0, samples.ray_index)
    return samples.sum(result.weights * distance * distance)[:, None]


def backend(like: Tensor, name: str = "auto") -> ModuleType:
    """Return the back end's module for the device of `like`, see `backends.load`. Raises ConfigError."""
    return load(MODULES, name, like.device)
