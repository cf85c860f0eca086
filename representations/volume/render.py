"""Volume rendering of a field (Mildenhall et al. 2020, "NeRF"): rays, samples, density and colour, pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from threedgen.representations.losses import distortion, facing_away
from threedgen.representations.march import Samples, composite, depth_variance, join, march, pack, visible
from threedgen.representations.options import MarchConfig
from threedgen.representations.shading import ALBEDO, NoMaterial, Shading
from threedgen.run.memory import graph_bytes

from .occupancy import OccupancyGrid
from .two_pass import two_pass


class Field(Protocol):
    """Points (N, 3) in world units, inside the marcher's cube, to density (N,) >= 0, features and normals.

    `along`: of a field whose density depends on the ray (`sdf.py`), what is asked instead; else None.
    """

    along: Any

    def density(self, x: Tensor) -> Tensor: ...

    def with_normal(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def parameters(self) -> Iterable[Tensor]: ...


class Background(Protocol):
    """Unit directions (R, 3) to colours (R, 3)."""

    def __call__(
        self, directions: Tensor, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Tensor: ...


@dataclass
class Render:
    """What R rays see. Distances in world units along the ray, colours in [0, 1].

    rgb = rgb_fg + background * (1 - opacity), each (R, 3); opacity (R, 1) = sum of weights; depth (R, 1) =
    sum of weight * distance, not divided by the opacity; z_variance (R, 1) see `march.depth_variance`; normal
    (R, 3) as a picture, opacity * (unit normal + 1) / 2, and away (R, 1), see `losses.facing_away`, or None if no
    normals were needed; eikonal (R, 1), summed over the samples, see `losses.eikonal`, or None for fields without a
    distance; surface: vertices (N, 3) and faces (F, 3) of a mesh. Per sample: samples; weights (N,) and normals (N, 3)
    unless it was made in chunks.
    """

    rgb: Tensor
    rgb_fg: Tensor
    background: Tensor
    opacity: Tensor
    depth: Tensor
    z_variance: Tensor
    shading: Shading
    samples: Samples
    normal: Tensor | None = None
    away: Tensor | None = None
    eikonal: Tensor | None = None
    weights: Tensor | None = None
    normals: Tensor | None = None
    surface: tuple[Tensor, Tensor] | None = None

    def distortion(self, span: float) -> Tensor | None:
        """See `losses.distortion`; None of a mesh and of what was made in chunks."""
        s = self.samples
        if self.weights is None:
            return None
        return distortion(self.weights, s.t_start, s.t_end, s.ray_index, s.start, span)


def render(
    field: Field,
    background: Background,
    material: NoMaterial,
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
    """Render rays (R, 3), (R, 3), unit directions.

    light (3,) or (R, 3): point lights in the world, for lit `shading`. In training the samples are jittered and the
    background may be random, both from `generator` (of the CPU); else steps are as long as `options.shown` says.
    chunk: so many samples at a time, for renders too large at once; the result is the same, gradients in the field's
    parameters included (`two_pass`).
    Raises ValueError if training lacks the generator.
    """
    if training and generator is None:
        raise ValueError("rendering in training draws random numbers and needs a generator")
    options = options if training else options.of_pictures()
    behind = background(directions, training=training, generator=generator)
    jitter = None
    if training and options.jitter:
        jitter = torch.rand(len(origins), generator=generator).to(origins.device)
    rays = _Rays(origins, directions, jitter, None if light is None else light.expand(len(origins), 3))
    samples = _place(field, occupancy, options, rays, chunk)

    def shade(part: slice) -> tuple[Tensor | None, ...]:
        return _shade(field, material, options, rays.part(part), samples.of_rays(part), shading, need_normals)

    parts = samples.split(chunk)
    if len(parts) == 1:
        columns = shade(parts[0])
    else:
        columns = two_pass(lambda part: shade(part)[:-2], parts, field.parameters())
    shaded: dict[str, Any] = dict(zip(_SHADED, columns, strict=False))
    rgb = shaded["rgb_fg"] + behind * (1 - shaded["opacity"])
    return Render(rgb=rgb, background=behind, shading=shading, samples=samples, **shaded)


class _Rays(NamedTuple):
    """What comes with each ray: (R, 3), (R, 3), (R,) or None, (R, 3) or None."""

    origins: Tensor
    directions: Tensor
    jitter: Tensor | None
    light: Tensor | None

    def part(self, part: slice) -> _Rays:
        """The rays part.start, ..., part.stop - 1."""
        return _Rays(*(None if value is None else value[part] for value in self))  # type: ignore[arg-type]


_SHADED = ("rgb_fg", "opacity", "depth", "z_variance", "normal", "away", "eikonal", "weights", "normals")
"""What `Render` has that the field has to be asked for: for each ray, and the last two for each sample."""
PLACING = 4
"""Where no graph is kept, so many times more samples are looked at together."""


@torch.no_grad()
def _place(
    field: Field, occupancy: OccupancyGrid | None, options: MarchConfig, rays: _Rays, chunk: int | None
) -> Samples:
    """The samples that are worth shading, found for a few rays at a time if a chunk is given.

    All that a second pass needs to see the same again: 16 bytes for each.
    """
    grid = None if occupancy is None else occupancy.binary
    together = len(rays.origins) if chunk is None else PLACING * chunk // options.samples
    groups = []
    for first in range(0, max(1, len(rays.origins)), max(1, together)):
        group = rays.part(slice(first, first + max(1, together)))
        samples = march(group.origins, group.directions, options, grid, group.jitter)
        groups.append(_worth_shading(field, occupancy, options, group, samples))
    return join(groups)


def _worth_shading(
    field: Field, occupancy: OccupancyGrid | None, options: MarchConfig, rays: _Rays, samples: Samples
) -> Samples:
    """Leave out samples that are almost transparent or behind almost opaque matter (nerfacc's rule).

    Costs an evaluation of the density without gradient, about 0.4 of what shading and learning from a sample
    costs with a small field on a CPU: it pays where it drops more than 0.4 of the samples, which is why the
    options leave it off; with second derivatives through normals it pays earlier. While the scene is fog all
    over, the grid's mean value lowers the threshold, or nothing would ever be seen.
    """
    if len(samples) == 0 or (options.alpha_threshold == 0 and options.early_stop == 0):
        return samples
    sigma = field.density(samples.positions(rays.origins, rays.directions))
    least = options.alpha_threshold if occupancy is None else min(options.alpha_threshold, occupancy.mean())
    return samples.select(visible(sigma, samples, least, options.early_stop, options.backend))


def _shade(
    field: Field,
    material: NoMaterial,
    options: MarchConfig,
    rays: _Rays,
    samples: Samples,
    shading: Shading,
    need_normals: bool,
) -> tuple[Tensor | None, ...]:
    """Shades and composites, without random numbers: gives `_SHADED`, the same again for the same rays."""
    if len(samples) == 0:  # one sample of no length on the first ray sees nothing, but keeps the graph
        zero = rays.origins.new_zeros(1)
        samples = pack(zero.long(), zero, zero, len(rays.origins))
        points = rays.origins[:1].detach().clamp(-options.radius, options.radius)
    else:
        points = samples.positions(rays.origins, rays.directions)
    normals = eikonal = None
    if field.along is not None:
        seen_along = rays.directions.index_select(0, samples.ray_index)
        sigma, features, normals, steepness = field.along(points, seen_along, samples.t_end - samples.t_start)
        eikonal = samples.sum((steepness - 1).square())[:, None]
    elif need_normals or shading.lit:
        sigma, features, normals = field.with_normal(points)
    else:
        sigma, features = field(points)
    light = None if rays.light is None else rays.light.index_select(0, samples.ray_index)
    colours = material(features, normals, points, light, shading)

    values = colours if normals is None else torch.cat([colours, normals], dim=-1)
    seen = composite(sigma, values, samples, options.backend)
    rgb_fg, normal, away = seen.values, None, None
    if normals is not None:
        rgb_fg, toward = seen.values.split(3, dim=-1)
        normal = seen.opacity * (normalize(toward, dim=-1) + 1) / 2
        directions = rays.directions.index_select(0, samples.ray_index)
        away = samples.sum(facing_away(seen.weights, normals, directions))[:, None]
    spread = depth_variance(seen, samples)
    return rgb_fg, seen.opacity, seen.depth, spread, normal, away, eikonal, seen.weights, normals


# --- how many samples at a time ---------------------------------------------------------------------------------

SHARE = 0.25
"""Part of the free memory that the graph of a chunk may take: prior and optimiser come after it."""
BACKWARD = 2.0
"""Memory of a forward and backward pass, in units of what the graph keeps (gradients, temporaries)."""


def sample_bytes(
    field: Field,
    background: Background,
    material: NoMaterial,
    options: MarchConfig,
    normals: bool,
    device: torch.device | str = "cpu",
) -> float:
    """Bytes that the graph of a training render keeps for each sample, measured on some parallel rays."""
    shading = Shading("diffuse", 0.5, 0.5) if normals else ALBEDO
    every = options.model_copy(update={"alpha_threshold": 0.0, "early_stop": 0.0, "chunk": None})

    def probe(rays: int) -> Render:
        across = torch.linspace(-0.9, 0.9, rays, device=device)
        origins = options.radius * torch.stack([torch.full_like(across, -3.0), across, across], dim=-1)
        directions = torch.tensor([[1.0, 0.0, 0.0]], device=device).expand(rays, 3)
        parts = (field, background, material, None, every)
        return render(*parts, origins, directions, light=origins, need_normals=normals, shading=shading)

    few, many = 16, 32
    with torch.enable_grad():
        samples = len(probe(many).samples) - len(probe(few).samples)
        return (graph_bytes(lambda: probe(many)) - graph_bytes(lambda: probe(few))) / max(1, samples)


def samples_that_fit(free: int, each: float) -> int:
    """Samples of a chunk, for free bytes of memory and bytes of graph for each sample.

    A power of two, so that a little more or less free memory does not change the number.
    """
    return 1 << max(10, int(SHARE * free / (BACKWARD * max(each, 1.0))).bit_length() - 1)
