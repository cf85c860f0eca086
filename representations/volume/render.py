"""Volume rendering of a field along rays (Mildenhall et al. 2020, "NeRF")."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from threedgen.representations.base import Background, Material, Render
from threedgen.representations.losses import orientation_terms
from threedgen.representations.march import Samples, composite, depth_variance, join, march, pack, visible
from threedgen.representations.options import MarchConfig
from threedgen.representations.shading import ALBEDO, Shading
from threedgen.run.memory import graph_bytes

from .occupancy import OccupancyGrid
from .two_pass import two_pass


class Field(Protocol):
    """Map of points x (N, 3) inside the bound, in world units, to densities (N,) >= 0 and features (N, F).

    `with_normal` also returns outward unit normals (N, 3). If the density depends on the ray direction, `along_ray` is
    a method that replaces both (see `sdf.SDF.along_ray` for its arguments), else it is None.
    """

    along_ray: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]] | None

    def density(self, x: Tensor) -> Tensor: ...

    def with_normal(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def parameters(self) -> Iterable[Tensor]: ...


def render(
    field: Field,
    background: Background,
    material: Material,
    occupancy: OccupancyGrid | None,
    options: MarchConfig,
    origins: Tensor,
    directions: Tensor,
    *,
    generator: torch.Generator | None = None,
    training: bool = False,
    light: Tensor | None = None,
    need_normals: bool = False,
    shading: Shading = ALBEDO,
    chunk: int | None = None,
) -> Render:
    """Render R rays through a field.

    Args:
        occupancy: grid whose empty cells are skipped, or None.
        origins, directions: (R, 3) each, in world units; directions have unit length.
        generator: CPU generator for the random shift of the samples and a random background. Required in training.
        training: if False, use `options.shown` samples per ray and no random numbers.
        light: (3,) or (R, 3) world positions of point lights, for a lit `shading`.
        need_normals: if True, compute normals even if the shading is unlit.
        shading: shading mode and light intensities.
        chunk: maximum number of samples per gradient-checkpointed chunk (`two_pass`). It changes memory, not results.
    """
    if training and generator is None:
        raise ValueError("missing generator for training=True. Pass a CPU generator.")
    options = options if training else options.for_evaluation()
    background_rgb = background(directions, training=training, generator=generator)
    jitter = None
    if training and options.jitter:
        jitter = torch.rand(len(origins), generator=generator).to(origins.device)
    rays = _Rays(origins, directions, jitter, None if light is None else light.expand(len(origins), 3))
    samples = _sample_rays(field, occupancy, options, rays, chunk)

    def shade(part: slice) -> tuple[Tensor | None, ...]:
        return _shade(field, material, options, rays.select(part), samples.select_rays(part), shading, need_normals)

    parts = samples.split(chunk)
    if len(parts) == 1:
        columns = shade(parts[0])
    else:
        columns = two_pass(lambda part: shade(part)[:-2], parts, field.parameters())
    shaded: dict[str, Any] = dict(zip(_SHADED, columns, strict=False))
    rgb = shaded["rgb_fg"] + background_rgb * (1 - shaded["opacity"])
    return Render(rgb=rgb, background=background_rgb, shading=shading, samples=samples, **shaded)


class _Rays(NamedTuple):
    """Inputs per ray: origins and directions (R, 3), jitter (R,) in steps or None, light positions (R, 3) or None."""

    origins: Tensor
    directions: Tensor
    jitter: Tensor | None
    light: Tensor | None

    def select(self, part: slice) -> _Rays:
        return _Rays(*(None if value is None else value[part] for value in self))  # type: ignore[arg-type]


_SHADED = ("rgb_fg", "opacity", "depth", "z_variance", "normal", "orientation", "eikonal", "weights", "normals")
"""Attributes of `Render` that `_shade` computes. The last two are per sample, the others per ray."""
NO_GRAD_FACTOR = 4
"""Chunk size of the passes without a graph, as a multiple of the training chunk."""


@torch.no_grad()
def _sample_rays(
    field: Field, occupancy: OccupancyGrid | None, options: MarchConfig, rays: _Rays, chunk: int | None
) -> Samples:
    """Return the samples to shade (16 bytes each). With `chunk`, a few rays are marched at a time, to save memory."""
    grid = None if occupancy is None else occupancy.binary
    rays_per_group = max(1, len(rays.origins) if chunk is None else NO_GRAD_FACTOR * chunk // options.samples)
    groups = []
    for first in range(0, max(1, len(rays.origins)), rays_per_group):
        group = rays.select(slice(first, first + rays_per_group))
        samples = march(group.origins, group.directions, options, grid, group.jitter)
        groups.append(_drop_invisible(field, occupancy, options, group, samples))
    return join(groups)


def _drop_invisible(
    field: Field, occupancy: OccupancyGrid | None, options: MarchConfig, rays: _Rays, samples: Samples
) -> Samples:
    """Drop samples with a low alpha or a low transmittance before them (nerfacc's rule).

    This costs one density evaluation without gradient, about 0.4 of shading and training a sample (small field, CPU).
    It pays off if more than 40 % of the samples are dropped, or fewer with analytic normals. Hence it is off by
    default. The alpha threshold is at most the mean of the occupancy grid. Otherwise a scene of uniform low density
    would lose all samples.
    """
    if len(samples) == 0 or (options.alpha_threshold == 0 and options.early_stop == 0):
        return samples
    sigma = field.density(samples.positions(rays.origins, rays.directions))
    threshold = options.alpha_threshold if occupancy is None else min(options.alpha_threshold, occupancy.mean())
    return samples.select(visible(sigma, samples, threshold, options.early_stop, options.backend))


def _shade(
    field: Field,
    material: Material,
    options: MarchConfig,
    rays: _Rays,
    samples: Samples,
    shading: Shading,
    need_normals: bool,
) -> tuple[Tensor | None, ...]:
    """Shade and composite the samples and return the values of `_SHADED`. Deterministic, as `two_pass` requires."""
    if len(samples) == 0:  # one sample of length 0 on the first ray keeps the graph
        zero = rays.origins.new_zeros(1)
        samples = pack(zero.long(), zero, zero, len(rays.origins))
        points = rays.origins[:1].detach().clamp(-options.radius, options.radius)
    else:
        points = samples.positions(rays.origins, rays.directions)
    normals = eikonal = None
    if field.along_ray is not None:
        directions = rays.directions.index_select(0, samples.ray_index)
        lengths = samples.t_end - samples.t_start
        sigma, features, normals, gradient_norm = field.along_ray(points, directions, lengths)
        eikonal = samples.sum((gradient_norm - 1).square())[:, None]
    elif need_normals or shading.lit:
        sigma, features, normals = field.with_normal(points)
    else:
        sigma, features = field(points)
    light = None if rays.light is None else rays.light.index_select(0, samples.ray_index)
    colours = material(features, normals, points, light, shading)

    values = colours if normals is None else torch.cat([colours, normals], dim=-1)
    result = composite(sigma, values, samples, options.backend)
    rgb_fg, normal, orientation = result.values, None, None
    if normals is not None:
        rgb_fg, normal_sum = result.values.split(3, dim=-1)
        normal = result.opacity * (normalize(normal_sum, dim=-1) + 1) / 2
        directions = rays.directions.index_select(0, samples.ray_index)
        orientation = samples.sum(orientation_terms(result.weights, normals, directions))[:, None]
    variance = depth_variance(result, samples)
    return rgb_fg, result.opacity, result.depth, variance, normal, orientation, eikonal, result.weights, normals


# --- chunk size ------------------------------------------------------------------------------------------

MEMORY_FRACTION = 0.25
"""Fraction of the free memory for the graph of a chunk. The rest is for the prior and the optimiser."""
BACKWARD_FACTOR = 2.0
"""Peak memory of a forward and backward pass, as a multiple of the graph's memory."""


def sample_bytes(
    field: Field,
    background: Background,
    material: Material,
    options: MarchConfig,
    normals: bool,
    device: torch.device | str = "cpu",
) -> float:
    """Measure the graph memory of a training render in bytes per sample, on a few rays; `normals`: with lit shading."""
    shading = Shading("diffuse", 0.5, 0.5) if normals else ALBEDO
    shade_all = options.model_copy(update={"alpha_threshold": 0.0, "early_stop": 0.0, "chunk": None})

    def probe(rays: int) -> Render:
        offset = torch.linspace(-0.9, 0.9, rays, device=device)
        origins = options.radius * torch.stack([torch.full_like(offset, -3.0), offset, offset], dim=-1)
        directions = torch.tensor([[1.0, 0.0, 0.0]], device=device).expand(rays, 3)
        parts = (field, background, material, None, shade_all)
        return render(*parts, origins, directions, light=origins, need_normals=normals, shading=shading)

    n, twice_n = 16, 32
    with torch.enable_grad():
        samples = probe(twice_n).n_samples - probe(n).n_samples
        return (graph_bytes(lambda: probe(twice_n)) - graph_bytes(lambda: probe(n))) / max(1, samples)


def samples_that_fit(free_bytes: int, bytes_per_sample: float) -> int:
    """Return the samples per chunk, a power of two, so that small changes of the free memory do not change it."""
    fitting = MEMORY_FRACTION * free_bytes / (BACKWARD_FACTOR * max(bytes_per_sample, 1.0))
    return 1 << max(10, int(fitting).bit_length() - 1)
