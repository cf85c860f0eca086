"""Ray marching and compositing over packed samples: one interface, a torch twin and kernels.

Samples of all rays lie one after the other in flat arrays, sorted by ray; ``start`` and ``count`` say which
belong to a ray. Sample k of a ray covers [t_k, t_k + step] with t_k = entry + (k + jitter) * step and is kept
when its midpoint lies inside the bound and, if a grid is given, in an occupied cell. All back ends
return the same samples, but for nerfacc's rounding at the borders of cells.
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
"""Modules with march, positions, composite and visible; imported at need."""


@dataclass(frozen=True)
class Samples:
    """Packed samples of R rays.

    ray_index (N,) int64, ascending; t_start, t_end (N,) float32 distances along the unit direction;
    start, count (R,) int64: the samples of ray r are ``start[r] : start[r] + count[r]``.
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
        """(N,) distance of the point that stands for the interval."""
        return 0.5 * (self.t_start + self.t_end)

    def intervals(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t_start, t_end, start and count, as kernels take them."""
        return self.t_start.contiguous(), self.t_end.contiguous(), self.start.contiguous(), self.count.contiguous()

    def positions(self, origins: Tensor, directions: Tensor) -> Tensor:
        """World points (N, 3) at the midpoints of the intervals; no gradient reaches the rays (R, 3)."""
        return backend(self.t_start).positions(self, origins, directions)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of values (N,) or (N, C) over the samples of each ray: (R,) or (R, C); differentiable."""
        total = values.new_zeros((self.n_rays, *values.shape[1:]))
        return total.index_add(0, self.ray_index, values)

    def select(self, keep: Tensor) -> Samples:
        """The samples whose flag in keep (N,) bool is set."""
        index = keep.nonzero()[:, 0]
        return pack(
            self.ray_index.index_select(0, index),
            self.t_start.index_select(0, index),
            self.t_end.index_select(0, index),
            self.n_rays,
        )

    def of_rays(self, part: slice) -> Samples:
        """The samples of the rays part.start, ..., part.stop - 1, which are then numbered from 0."""
        start, count = self.start[part], self.count[part]
        first, last = (int(start[0]), int(start[-1] + count[-1])) if len(start) else (0, 0)
        return Samples(
            self.ray_index[first:last] - part.start,
            self.t_start[first:last],
            self.t_end[first:last],
            start - first,
            count,
        )

    def split(self, most: int | None) -> list[slice]:
        """The rays in consecutive parts of at most `most` samples; a ray that has more is a part of its own.

        None: all rays in one part, which is also what few samples give.
        """
        if most is None or len(self) <= most:
            return [slice(0, self.n_rays)]
        ends, parts, first, done = self.count.cumsum(0).cpu(), [], 0, 0
        while first < self.n_rays:
            stop = max(first + 1, int(torch.searchsorted(ends, done + most, right=True)))
            parts.append(slice(first, stop))
            first, done = stop, int(ends[stop - 1])
        return parts


def join(groups: Sequence[Samples]) -> Samples:
    """The samples of consecutive groups of rays as those of all rays."""
    if len(groups) == 1:
        return groups[0]
    rays = accumulate((len(group.count) for group in groups), initial=0)
    index = torch.cat([group.ray_index + first for group, first in zip(groups, rays, strict=False)])
    count = torch.cat([group.count for group in groups])
    t_start, t_end = (torch.cat([getattr(group, name) for group in groups]) for name in ("t_start", "t_end"))
    return Samples(index, t_start, t_end, count.cumsum(0) - count, count)


class Composite(NamedTuple):
    """Result of volume rendering: values (R, C), opacity (R, 1), depth (R, 1), weights (N,)."""

    values: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor


def pack(ray_index: Tensor, t_start: Tensor, t_end: Tensor, n_rays: int) -> Samples:
    """Samples from flat arrays (N,) whose ray_index is already ascending."""
    ray_index = ray_index.long()
    rays = torch.arange(n_rays + 1, device=ray_index.device)
    edges = torch.searchsorted(ray_index, rays)
    return Samples(ray_index, t_start, t_end, edges[:-1], edges[1:] - edges[:-1])


def step_size(options: MarchConfig) -> float:
    """World length of one step: the longest chord of the bound divided by ``options.samples``."""
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

    origins, directions (R, 3) float32, unit directions; grid (G, G, G) bool over [-radius, radius]^3, indexed
    [x, y, z], or None for no skipping; jitter (R,) in [0, 1) shifts a ray's samples by that part of a step.
    ``sampler: occupancy`` takes the fixed step of `step_size` and skips empty cells; ``sampler: stratified``
    divides each ray's chord in ``samples`` equal intervals and ignores the grid.
    """
    rays = origins.detach().contiguous(), directions.detach().contiguous()
    grid = None if options.sampler == "stratified" else grid
    return backend(origins, options.backend).march(*rays, options, grid, jitter)


def composite(sigma: Tensor, values: Tensor, samples: Samples, name: str = "auto") -> Composite:
    """The volume rendering quadrature (NeRF, eq. 3).

    w_i = T_i (1 - exp(-sigma_i dt_i)) with T_i = exp(-sum_(j<i) sigma_j dt_j), for sigma (N,) >= 0 and values
    (N, C). Gives sum w v, opacity = sum w, depth = sum w t (not normalised) and w; all four are
    differentiable with respect to sigma, the first also with respect to values. Kernels work in float32 and
    differentiate once, the torch twin any number of times.
    """
    return backend(sigma, name).composite(sigma, values, samples)


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float, name: str = "auto") -> Tensor:
    """(N,) bool: alpha of the sample >= alpha_threshold and transmittance up to it >= early_stop."""
    return backend(sigma, name).visible(sigma.detach(), samples, alpha_threshold, early_stop)


def depth_variance(result: Composite, samples: Samples) -> Tensor:
    """Spread of each ray's weights along the ray, (R, 1): sum w (t - depth)^2 with the plain weights (MVDream)."""
    distance = samples.t_mid - result.depth[:, 0].index_select(0, samples.ray_index)
    return samples.sum(result.weights * distance * distance)[:, None]


def backend(like: Tensor, name: str = "auto") -> ModuleType:
    """The module that does the work where `like` is, see `backends.load`. Raises ConfigError."""
    return load(MODULES, name, like.device)
