"""Ray marching and compositing of packed samples, with several back ends.

The samples of all rays are stored in flat arrays, sorted by ray. Sample k of a ray covers the distances [t_k, t_k +
step] with t_k = entry + (k + jitter) * step. Here `entry` is the distance at which the ray enters the bounding volume
(a cube or ball around the origin), at least the option `near`. A sample is kept if its midpoint is in this volume and,
with an occupancy grid, in an occupied cell. All back ends return the same samples, except that nerfacc may round
differently at cell borders.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from threedgen.representations.backends import load

if TYPE_CHECKING:
    from threedgen.representations.volume.options import MarchConfig

MODULES = {
    "torch": "threedgen.representations.march.torch_twin",
    "numba": "threedgen.representations.march.numba_kernels",
    "triton": "threedgen.representations.march.triton_kernels",
    "nerfacc": "threedgen.representations.march.nerfacc_backend",
    "meta": "threedgen.representations.shapes_only",
}
"""Import path of each back end's module. All modules have the functions `place`, `composite` and `visible`."""


@dataclass(frozen=True)
class Samples:
    """N samples on R rays, sorted by ray. A sample is an interval of a ray.

    Sample n is the interval t_start[n] to t_end[n], as distances in world units, of the ray ray_index[n]. Ray r has the
    samples start[r] : start[r] + count[r].
    """

    ray_index: Tensor  # (N,) int64 index of the sample's ray, ascending
    t_start: Tensor  # (N,) float32 start of the interval, as a distance along the unit direction in world units
    t_end: Tensor  # (N,) float32 end of the interval
    start: Tensor  # (R,) int64
    count: Tensor  # (R,) int64

    def __len__(self) -> int:
        return len(self.ray_index)

    @property
    def n_rays(self) -> int:
        return len(self.start)

    @property
    def t_mid(self) -> Tensor:
        """Midpoints (N,) of the intervals, as distances along the ray in world units."""
        return 0.5 * (self.t_start + self.t_end)

    def intervals(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return t_start (N,), t_end (N,), start (R,) and count (R,) of N samples on R rays, as contiguous tensors.

        Sample n is the interval t_start[n] to t_end[n] along its ray, in world units. Ray r has count[r] consecutive
        samples, the first of which is sample start[r].
        """
        return self.t_start.contiguous(), self.t_end.contiguous(), self.start.contiguous(), self.count.contiguous()

    @torch.no_grad()
    def positions(self, origins: Tensor, directions: Tensor) -> Tensor:
        """Return the world positions (N, 3) of the midpoints of the N samples, without gradient.

        `origins` (R, 3) and unit `directions` (R, 3) define the R rays on which the samples lie.
        """
        if self.t_start.device.type == "cpu" and self.t_start.dtype == torch.float32:
            return backend(self.t_start, "numba").positions(self, origins, directions)  # six times as fast
        points = self.t_mid[:, None] * directions.index_select(0, self.ray_index)
        return points.add_(origins.index_select(0, self.ray_index))

    def sum(self, values: Tensor) -> Tensor:
        """Sum values (N,) or (N, C) of N samples over each of R rays: (R,) or (R, C), differentiable in the values."""
        total = values.new_zeros((self.n_rays, *values.shape[1:]))
        return total.index_add(0, self.ray_index, values)

    def select(self, keep: Tensor) -> "Samples":
        """Return the samples for which the bool mask `keep` (N,) is True. The number of rays stays."""
        index = keep.nonzero()[:, 0]
        columns = (column.index_select(0, index) for column in (self.ray_index, self.t_start, self.t_end))
        ray_index, t_start, t_end = columns
        return pack(ray_index, t_start, t_end, self.n_rays)

    def select_rays(self, part: slice) -> "Samples":
        """Return the samples of a slice of rays. The first ray of the slice gets the index 0."""
        if (part.start, part.stop) == (0, self.n_rays):
            return self
        start, count = self.start[part], self.count[part]
        first, last = int(self.ends[part.start]), int(self.ends[part.stop])
        ray_index, t_start, t_end = (column[first:last] for column in (self.ray_index, self.t_start, self.t_end))
        return Samples(ray_index - part.start, t_start, t_end, start - first, count)

    def split(self, max_samples: int | None) -> list[slice]:
        """Divide the rays into consecutive slices with at most `max_samples` samples each; None: one slice of all rays.

        A slice has at least one ray, even if that ray has more samples.
        """
        if max_samples is None or len(self) <= max_samples:
            return [slice(0, self.n_rays)]
        return _split(self.ends, max_samples)

    @cached_property
    def ends(self) -> Tensor:
        """Index of the first sample of each ray, then the number of all samples: (R + 1,) int64 on the CPU.

        The first access copies from the GPU and waits for it.
        """
        return _ends(self.count)


def _ends(count: Tensor) -> Tensor:
    return F.pad(count.cumsum(0), (1, 0)).cpu()


def _split(ends: Tensor, max_samples: int) -> list[slice]:
    # as `Samples.split`; `ends` is that of `Samples`
    parts, first = list[slice](), 0
    while first < len(ends) - 1:
        end = int(torch.searchsorted(ends, ends[first] + max_samples, right=True))
        parts.append(slice(first, max(first + 1, end - 1)))
        first = parts[-1].stop
    return parts


def pack(ray_index: Tensor, t_start: Tensor, t_end: Tensor, n_rays: int) -> Samples:
    """Create `Samples` on `n_rays` rays from the ray indices, starts and ends of N intervals, (N,) each.

    Start and end are distances along the ray in world units. `ray_index` must be ascending.
    """
    ray_index = ray_index.long()
    edges = torch.searchsorted(ray_index, torch.arange(n_rays + 1, device=ray_index.device))
    return Samples(ray_index, t_start, t_end, edges[:-1], edges[1:] - edges[:-1])


def join(groups: Sequence[Samples]) -> Samples:
    """Concatenate the samples of several groups of rays. The rays of a group follow those of the group before it."""
    if len(groups) == 1:
        return groups[0]
    rays = accumulate((group.n_rays for group in groups), initial=0)
    index = torch.cat([group.ray_index + first for group, first in zip(groups, rays, strict=False)])
    t_start, t_end, count = (torch.cat([getattr(g, name) for g in groups]) for name in ("t_start", "t_end", "count"))
    return Samples(index, t_start, t_end, count.cumsum(0) - count, count)


def step_size(options: "MarchConfig") -> float:
    """Return the step length in world units: the longest chord of the bounding volume divided by `options.samples`."""
    diagonal = math.sqrt(3.0) if options.bound == "box" else 1.0
    return 2.0 * options.radius * diagonal / options.samples


def march(
    origins: Tensor,
    directions: Tensor,
    options: "MarchConfig",
    grid: Tensor | None = None,
    jitter: Tensor | None = None,
    total: int | None = None,
) -> "Samples":
    """Divide R rays into intervals of length `step_size(options)`; return those whose midpoint is in an occupied cell.

    Args:
        origins, directions: (R, 3) float32 each, in world units; directions have unit length.
        options: bounding volume, number of samples on its longest chord, minimum distance of samples, and back end.
        grid: (G, G, G) bool over [-radius, radius]^3, indexed [x, y, z], True for occupied cells. None: all cells are
            occupied.
        jitter: (R,) in [0, 1), shift of each ray's samples in steps. None: no shift.
        total: number of samples on these rays, if the caller knows it from the function `groups`, which counts the
            samples of many rays at once. None: they are counted here, and the host waits for the GPU.

    Returns:
        N samples inside the bounding volume, sorted by ray. Each is an interval: the index of its ray, and its start
        and end as distances from the ray's origin in world units.
    """
    rays = origins.detach().contiguous(), directions.detach().contiguous()
    known = {} if total is None else {"total": total}
    return backend(origins, options.backend).place(*rays, spans_of(*rays, options, jitter), options, grid, **known)


def groups(
    origins: Tensor,
    directions: Tensor,
    options: "MarchConfig",
    grid: Tensor | None,
    jitter: Tensor | None,
    max_samples: int,
) -> list[tuple[slice, int | None]]:
    """Divide R rays into consecutive slices with at most `max_samples` samples each, to `march` one slice at a time.

    The samples of all rays are counted at once, so that the host waits for the GPU only once. In two cases they are not
    counted, and each ray is assumed to have `options.samples` samples, the most that a ray can have:

    - all rays fit into one slice even then;
    - the back end (the kernel implementation `options.backend`) cannot count.

    Args:
        origins, directions: (R, 3) float32 each, in world units; directions have unit length.
        options: bounding volume, number of samples on its longest chord, minimum distance of samples, and back end.
        grid: (G, G, G) bool over [-radius, radius]^3, True for occupied cells. None: all cells are occupied.
        jitter: (R,) in [0, 1), shift of each ray's samples in steps. None: no shift.
        max_samples: maximum number of samples in a slice. A single ray with more samples is a slice of its own.

    Returns:
        List of pairs: slice of rays, and number of samples on them, for the argument `total` of `march`. The number is
        None if the samples are not counted.
    """
    module, n_rays, each = backend(origins, options.backend), len(origins), max(1, max_samples // options.samples)
    if n_rays <= each or not hasattr(module, "counts"):
        return [(slice(first, first + each), None) for first in range(0, max(1, n_rays), each)]
    rays = origins.detach().contiguous(), directions.detach().contiguous()
    ends = _ends(module.counts(*rays, spans_of(*rays, options, jitter), options, grid))
    return [(part, int(ends[part.stop] - ends[part.start])) for part in _split(ends, max_samples)]


def spans_of(origins: Tensor, directions: Tensor, options: "MarchConfig", jitter: Tensor | None) -> Tensor:
    """Return (R, 3): start of the first sample, exit from the bounding volume, and step, as distances along the ray.

    The start is where the ray enters the volume, but at least `options.near`. `jitter` (R,) in [0, 1) shifts it, in
    steps; None: no shift. A ray that misses the volume has exit <= start. Origins and unit directions are (R, 3), all
    lengths in world units. `options` has the size and shape of the volume and the number of steps on its longest chord.
    """
    if options.bound == "sphere":
        projection = _dot(origins, directions)
        nearest = origins - projection[:, None] * directions  # nearest point to the centre: no cancellation far away
        radius = origins.new_full((), options.radius)
        squared = (radius * radius - _dot(nearest, nearest)).clamp(min=0)
        # correctly rounded, as on a GPU, unlike torch's float32 sqrt on a CPU
        half = squared.double().sqrt().float() if squared.device.type == "cpu" else squared.sqrt()
        enter, leave = -projection - half, -projection + half
    else:
        safe = torch.where(directions.abs() < 1e-12, 1e-12, directions)  # ray parallel to a side: huge, not NaN
        sides = (-options.radius - origins) / safe, (options.radius - origins) / safe
        enter, leave = torch.minimum(*sides).amax(-1), torch.maximum(*sides).amin(-1)
    enter = enter.clamp(min=options.near)
    steps = torch.full_like(enter, step_size(options))
    return torch.stack([enter if jitter is None else enter + jitter * steps, leave, steps], dim=1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    # in the kernels' order of additions, for equal rounding
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


def max_samples_per_ray(spans: Tensor) -> Tensor:
    """Return an upper bound (R,) int64 of the number of samples on each ray.

    `spans` (R, 3) is the result of `spans_of`: start of the first sample, exit from the bounding volume, step length.
    """
    first, leave, steps = spans.unbind(1)
    return (((leave - first) / steps).long() + 1) * (leave > first)


class Composite(NamedTuple):
    """Result of compositing N samples on R rays. Sums are over the samples of a ray, with the weight w of a sample.

    Attributes:
        values: (R, C) sum of w * value.
        opacity: (R, 1) sum of w.
        depth: (R, 1) sum of w * distance of the sample's midpoint in world units, not divided by the opacity.
        weights: (N,) w of all samples.
    """

    values: Tensor  # (R, C) sum of w * value
    opacity: Tensor  # (R, 1) sum of w
    depth: Tensor  # (R, 1) sum of w * t_mid, not divided by the opacity
    weights: Tensor  # (N,) w of all samples


def composite(sigma: Tensor, values: Tensor, samples: Samples, name: str = "auto") -> Composite:
    """Composite along rays (NeRF, eq. 3): w_i = T_i (1 - exp(-sigma_i dt_i)), T_i = exp(-sum_(j<i) sigma_j dt_j).

    dt_i is the length of sample i, i and j number the samples of one ray. With the back end "torch", the result is
    differentiable any number of times. With the other back ends, it is differentiable once, in float32.

    Args:
        sigma: (N,) densities >= 0 in 1 / world unit.
        values: (N, C) values to composite, for example colours.
        samples: N samples, which are intervals of R rays, sorted by ray.
        name: name of the back end: "torch", "numba", "triton", "nerfacc", or "auto" for the fastest one.

    Returns:
        `Composite` with the sums over the samples i of each ray, and the weights:

        - values (R, C): sum of w_i * value_i;
        - opacity (R, 1): sum of w_i;
        - depth (R, 1): sum of w_i * m_i, not divided by the opacity; m_i is the distance along the ray to the midpoint
          of sample i, in world units;
        - weights (N,): w_i of all samples.
    """
    return backend(sigma, name).composite(sigma, values, samples)


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float, name: str = "auto") -> Tensor:
    """Return a bool mask (N,) of the visible samples.

    A sample is visible if its alpha, 1 - exp(-sigma * length), is at least `alpha_threshold` and the transmittance in
    front of it is at least `early_stop`. `sigma` (N,) are densities in 1 / world unit. `name` is the name of the back
    end; "auto" selects the fastest one.
    """
    return backend(sigma, name).visible(sigma.detach(), samples, alpha_threshold, early_stop)


def backend(like: Tensor, name: str = "auto") -> ModuleType:
    """Return the module of the back end `name` (kernel implementation; "auto": the fastest) for the device of `like`.

    `like` is any tensor on that device. Raises ConfigError if the back end is not installed, cannot be imported, or
    does not support the device.
    """
    return load(MODULES, name, like.device)


# --- autograd of the back ends with kernels

Forward = Callable[..., tuple[Tensor, Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, Tensor]]


def differentiable(forward: Forward, backward: Backward) -> Callable[[Tensor, Tensor, Samples], Composite]:
    """Create a differentiable function (sigma, values, samples) -> `Composite`, which composites along rays as in NeRF.

    The arguments are two kernels, which compute the result and its gradients:

        pixels, weights, transmittance = forward(sigma, values, t_start, t_end, start, count)
        g_sigma, g_values = backward(
            g_pixels, g_weights, sigma, values, t_start, t_end, start, count, weights, transmittance
        )

    For N samples on R rays, the tensors are contiguous, float32 except for start and count, and the name g_x stands for
    the gradient with respect to x:

    - sigma (N,), values (N, C): density of each sample, and its C values to composite, such as a colour;
    - t_start, t_end (N,): start and end of each sample, as distances along its ray;
    - start, count (R,), int64: ray r has the samples start[r] : start[r] + count[r];
    - pixels (R, C + 2): C composited values, opacity and depth of each ray;
    - weights (N,): compositing weights;
    - transmittance (N,): transmittance behind each sample.
    """

    def composite(sigma: Tensor, values: Tensor, samples: Samples) -> Composite:
        inputs = sigma.float().contiguous(), values.float().contiguous(), *samples.intervals()
        pixels, weights = _Composite.apply(forward, backward, *inputs)
        total, opacity, depth = pixels.split([values.shape[1], 1, 1], dim=1)
        return Composite(total, opacity, depth, weights)

    return composite


class _Context(FunctionCtx):
    kernel: Backward
    saved_tensors: tuple[Tensor, ...]


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, forward: Forward, backward: Backward, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        pixels, weights, transmittance = forward(*inputs)
        ctx.kernel = backward
        ctx.save_for_backward(*inputs, weights, transmittance)
        return pixels, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_sigma, grad_values = ctx.kernel(*(grad.contiguous() for grad in grads), *ctx.saved_tensors)
        return None, None, grad_sigma, grad_values, None, None, None, None
