"""Volume rendering of a field (Mildenhall et al. 2020, "NeRF"): rays, samples, density and colour, pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .march import Samples, composite, depth_variance, march, pack, visible
from .materials import Shading
from .occupancy import OccupancyGrid
from .options import MarchConfig


class Field(Protocol):
    """Points (N, 3) in world units, inside the marcher's cube, to density (N,) >= 0, features and normals."""

    def density(self, x: Tensor) -> Tensor: ...

    def with_normal(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class Background(Protocol):
    """Unit directions (R, 3) to colours (R, 3)."""

    def __call__(
        self, directions: Tensor, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Tensor: ...


class Material(Protocol):
    """Colours (N, 3) of samples; `draw` picks the shading of one call."""

    def draw(
        self, step: int = 0, training: bool = False, generator: torch.Generator | None = None
    ) -> Shading: ...

    def __call__(
        self,
        features: Tensor,
        normal: Tensor | None = None,
        position: Tensor | None = None,
        light: Tensor | None = None,
        shading: Shading | None = None,
    ) -> Tensor: ...


@dataclass
class Render:
    """What R rays see. Distances in world units along the ray, colours in [0, 1].

    rgb = rgb_fg + background * (1 - opacity), each (R, 3); opacity (R, 1) = sum of weights; depth (R, 1) =
    sum of weight * distance, not divided by the opacity; z_variance (R, 1) see `march.depth_variance`; normal
    (R, 3) as a picture, opacity * (unit normal + 1) / 2, or None if no normals were needed. Per sample:
    samples, weights (N,), normals (N, 3) or None; empty in a render made in chunks.
    """

    rgb: Tensor
    rgb_fg: Tensor
    background: Tensor
    opacity: Tensor
    depth: Tensor
    z_variance: Tensor
    normal: Tensor | None
    shading: Shading
    samples: Samples
    weights: Tensor
    normals: Tensor | None

    @property
    def ray_index(self) -> Tensor:
        """(N,) the ray of each sample."""
        return self.samples.ray_index


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
    step: int = 0,
    light: Tensor | None = None,
    need_normals: bool = False,
    shading: Shading | None = None,
    chunk: int | None = None,
) -> Render:
    """Render rays (R, 3), (R, 3), unit directions.

    light (3,) or (R, 3): point lights in the world, for lit shading. In training the samples are jittered,
    the background may be random and the material draws its shading for this step, all from `generator` (of
    the CPU); `shading` overrules the draw. chunk: so many rays at a time, for pictures too large at once.
    Raises ValueError if training lacks the generator.
    """
    if training and generator is None:
        raise ValueError("rendering in training draws random numbers and needs a generator")
    shading = material.draw(step, training, generator) if shading is None else shading
    behind = background(directions, training=training, generator=generator)
    jitter = None
    if training and options.jitter:
        jitter = torch.rand(len(origins), generator=generator).to(origins.device)
    lights = None if light is None else light.expand(len(origins), 3)
    rays = _Rays(origins, directions, behind, jitter, lights)
    chunk = max(1, len(origins)) if chunk is None else chunk
    parts = [rays.part(first, first + chunk) for first in range(0, len(origins), chunk)] or [rays]
    done = [_render(field, material, occupancy, options, part, shading, need_normals) for part in parts]
    return done[0] if len(done) == 1 else _join(done)


class _Rays(NamedTuple):
    """What comes with each ray: (R, 3), (R, 3), (R, 3), (R,) or None, (R, 3) or None."""

    origins: Tensor
    directions: Tensor
    background: Tensor
    jitter: Tensor | None
    light: Tensor | None

    def part(self, first: int, last: int) -> _Rays:
        """The rays first, ..., last - 1."""
        part = slice(first, last)
        return _Rays(
            self.origins[part],
            self.directions[part],
            self.background[part],
            None if self.jitter is None else self.jitter[part],
            None if self.light is None else self.light[part],
        )


def _render(
    field: Field,
    material: Material,
    occupancy: OccupancyGrid | None,
    options: MarchConfig,
    rays: _Rays,
    shading: Shading,
    need_normals: bool,
) -> Render:
    """The renderer itself, without random numbers."""
    grid = None if occupancy is None else occupancy.binary
    samples = march(rays.origins, rays.directions, options, grid, rays.jitter)
    points = samples.positions(rays.origins, rays.directions)
    samples, points = _worth_shading(field, occupancy, options, samples, points)
    if len(samples) == 0:
        samples, points = _nothing(rays.origins, options.radius)

    normals = None
    if need_normals or shading.lit:
        sigma, features, normals = field.with_normal(points)
    else:
        sigma, features = field(points)
    light = None if rays.light is None else rays.light.index_select(0, samples.ray_index)
    colours = material(features, normals, points, light, shading)

    values = colours if normals is None else torch.cat([colours, normals], dim=-1)
    seen = composite(sigma, values, samples, options.backend)
    rgb_fg, normal = seen.values, None
    if normals is not None:
        rgb_fg, toward = seen.values.split(3, dim=-1)
        normal = seen.opacity * (normalize(toward, dim=-1) + 1) / 2
    return Render(
        rgb=rgb_fg + rays.background * (1 - seen.opacity),
        rgb_fg=rgb_fg,
        background=rays.background,
        opacity=seen.opacity,
        depth=seen.depth,
        z_variance=depth_variance(seen, samples),
        normal=normal,
        shading=shading,
        samples=samples,
        weights=seen.weights,
        normals=normals,
    )


def _worth_shading(
    field: Field, occupancy: OccupancyGrid | None, options: MarchConfig, samples: Samples, points: Tensor
) -> tuple[Samples, Tensor]:
    """Leave out samples that are almost transparent or behind almost opaque matter (nerfacc's rule).

    Costs an evaluation of the density without gradient, about 0.4 of what shading and learning from a sample
    costs with a small field on a CPU: it pays where it drops more than 0.4 of the samples, which is why the
    options leave it off; with second derivatives through normals it pays earlier. While the scene is fog all
    over, the grid's mean value lowers the threshold, or nothing would ever be seen.
    """
    if len(samples) == 0 or (options.alpha_threshold == 0 and options.early_stop == 0):
        return samples, points
    with torch.no_grad():
        sigma = field.density(points)
    least = options.alpha_threshold if occupancy is None else min(options.alpha_threshold, occupancy.mean())
    keep = visible(sigma, samples, least, options.early_stop, options.backend)
    return samples.select(keep), points[keep]


def _nothing(origins: Tensor, radius: float) -> tuple[Samples, Tensor]:
    """One sample of no length on the first ray: sees nothing, but keeps the graph, with zero gradients."""
    zero = origins.new_zeros(1)
    inside = origins[:1].detach().clamp(-radius, radius)
    return pack(zero.long(), zero, zero, len(origins)), inside


def _join(parts: list[Render]) -> Render:
    """The renders of consecutive groups of rays as one, without what is kept per sample."""
    rays = ("rgb", "rgb_fg", "background", "opacity", "depth", "z_variance")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in rays}
    normals = [part.normal for part in parts if part.normal is not None]
    none = joined["rgb"].new_zeros(0)
    return Render(
        **joined,
        normal=torch.cat(normals) if normals else None,
        shading=parts[0].shading,
        samples=pack(none.long(), none, none, len(joined["rgb"])),
        weights=none,
        normals=None,
    )
