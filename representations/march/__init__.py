"""Ray marching and compositing of packed samples, with several back ends.

The samples of all rays are stored in flat arrays, sorted by ray. `start` and `count` give the range of each ray. Sample
k of a ray covers the distances [t_k, t_k + step] with t_k = entry + (k + jitter) * step. A sample is kept if its
midpoint is inside the bound and, with an occupancy grid, in an occupied cell. All back ends return the same samples,
except that nerfacc may round differently at cell borders.
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
"""Import path of each back end's module. Each module has the functions march, positions, composite and visible."""


@dataclass(frozen=True)
class Samples:
    """Packed samples of R rays: N ray intervals in flat arrays.

    Attributes:
        ray_index: (N,) int64 index of the sample's ray, ascending.
        t_start, t_end: (N,) float32 ends of the interval, as distances along the unit direction in world units.
        start, count: (R,) int64. The samples of ray r are start[r] : start[r] + count[r].
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
        """Number of rays R, including rays without samples."""
        return self.start.shape[0]

    @property
    def t_mid(self) -> Tensor:
        """Midpoints (N,) of the intervals, as distances along the ray."""
        return 0.5 * (self.t_start + self.t_end)

    def intervals(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return t_start, t_end, start and count as contiguous tensors, the arguments of the kernels."""
        return self.t_start.contiguous(), self.t_end.contiguous(), self.start.contiguous(), self.count.contiguous()

    def positions(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Return world points (N, 3) at the midpoints, without gradient, for ray origins and unit directions (R, 3)."""
        return backend(self.t_start).positions(self, origins, directions)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sums (R,) or (R, C) of values (N,) or (N, C) over each ray, differentiable in the values."""
        total = values.new_zeros((self.n_rays, *values.shape[1:]))
        return total.index_add(0, self.ray_index, values)

    def select(self, keep: Tensor) -> Samples:
        """Return the samples for which the bool mask `keep` (N,) is True. The number of rays stays."""
        index = keep.nonzero()[:, 0]
        return pack(
            self.ray_index.index_select(0, index),
            self.t_start.index_select(0, index),
            self.t_end.index_select(0, index),
            self.n_rays,
        )

    def select_rays(self, part: slice) -> Samples:
        """Return the samples of a slice of rays. The first ray of the slice gets the index 0."""
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
        """Return slices of rays with at most `max_samples` samples each, but at least one ray; None: one slice."""
        if max_samples is None or len(self) <= max_samples:
            return [slice(0, self.n_rays)]
        ends, parts, first, done = self.count.cumsum(0).cpu(), [], 0, 0
        while first < self.n_rays:
            stop = max(first + 1, int(torch.searchsorted(ends, done + max_samples, right=True)))
            parts.append(slice(first, stop))
            first, done = stop, int(ends[stop - 1])
        return parts


def join(groups: Sequence[Samples]) -> Samples:
    """Concatenate the samples of consecutive ray ranges."""
    if len(groups) == 1:
        return groups[0]
    rays = accumulate((len(group.count) for group in groups), initial=0)
    index = torch.cat([group.ray_index + first for group, first in zip(groups, rays, strict=False)])
    count = torch.cat([group.count for group in groups])
    t_start, t_end = (torch.cat([getattr(group, name) for group in groups]) for name in ("t_start", "t_end"))
    return Samples(index, t_start, t_end, count.cumsum(0) - count, count)


class Composite(NamedTuple):
    """Result of compositing: values (R, C), opacity (R, 1), depth (R, 1) per ray, and weights (N,) per sample."""

    values: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor


def pack(ray_index: Tensor, t_start: Tensor, t_end: Tensor, n_rays: int) -> Samples:
    """Create `Samples` of `n_rays` rays from flat arrays (N,). `ray_index` must be ascending."""
    ray_index = ray_index.long()
    rays = torch.arange(n_rays + 1, device=ray_index.device)
    edges = torch.searchsorted(ray_index, rays)
    return Samples(ray_index, t_start, t_end, edges[:-1], edges[1:] - edges[:-1])


def step_size(options: MarchConfig) -> float:
    """Return the step in world units: the longest chord of the bounding volume divided by `options.samples`."""
    diagonal = math.sqrt(3.0) if options.bound == "box" else 1.0
    return 2.0 * options.radius * diagonal / options.samples


def march(
    origins: Tensor, directions: Tensor, options: MarchConfig, grid: Tensor | None = None, jitter: Tensor | None = None
) -> Samples:
    """Place samples on R rays.

    With `sampler: occupancy` all rays have the step `step_size` and samples in empty cells are skipped. With `sampler:
    stratified` the part of each ray inside the bound is divided into `samples` equal intervals, and the grid is
    ignored.

    Args:
        origins, directions: (R, 3) float32 each; directions have unit length.
        grid: (G, G, G) bool over [-radius, radius]^3, indexed [x, y, z], True for occupied cells. None skips nothing.
        jitter: (R,) in [0, 1), shift of a ray's samples in steps, or None for no shift.
    """
    rays = origins.detach().contiguous(), directions.detach().contiguous()
    grid = None if options.sampler == "stratified" else grid
    return backend(origins, options.backend).march(*rays, options, grid, jitter)


def composite(sigma: Tensor, values: Tensor, samples: Samples, name: str = "auto") -> Composite:
    """Composite along rays (NeRF, eq. 3): w_i = T_i (1 - exp(-sigma_i dt_i)), T_i = exp(-sum_(j<i) sigma_j dt_j).

    Kernels compute in float32 and are differentiable once. The torch back end is differentiable any number of times.

    Args:
        sigma: (N,) densities >= 0 in 1 / world unit.
        values: (N, C) values to composite, for example colours.
        name: back end, or "auto".

    Returns:
        Per ray: sum of w * value (R, C), differentiable in sigma and values. Opacity = sum of w and depth = sum of w *
            t_mid (R, 1 each), and per sample the weights w (N,), all differentiable in sigma. The depth is not divided
            by the opacity.
    """
    return backend(sigma, name).composite(sigma, values, samples)


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float, name: str = "auto") -> Tensor:
    """Return a bool mask (N,) of the samples that contribute to the render, for densities `sigma` (N,).

    Their alpha is at least `alpha_threshold`, and the transmittance in front of them is at least `early_stop`.
    """
    return backend(sigma, name).visible(sigma.detach(), samples, alpha_threshold, early_stop)


def depth_variance(result: Composite, samples: Samples) -> Tensor:
    """Return the depth variance (R, 1): the sum of w (t_mid - depth)^2, with unnormalised weights w (MVDream)."""
    distance = samples.t_mid - result.depth[:, 0].index_select(0, samples.ray_index)
    return samples.sum(result.weights * distance * distance)[:, None]


def backend(like: Tensor, name: str = "auto") -> ModuleType:
    """Return the module of the back end `name` for the device of the tensor `like`. Raises ConfigError, see `load`."""
    return load(MODULES, name, like.device)
