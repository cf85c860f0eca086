"""A mesh as an object to optimise: DMTet (Shen et al. 2021), distances on a tetrahedral grid, coloured by a field.

Each point of the grid has a distance and may move by half a cell; the surface between positive and negative ones is
rasterised. Another field, `paint`, colours its points. This is the second stage of Magic3D (Lin et al. 2023): grid and
paint begin from a field that was optimised before (`start`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from threedgen.config import ConfigError, registry
from threedgen.geometry.cameras import Cameras
from threedgen.representations.base import Representation
from threedgen.representations.losses import facing_away
from threedgen.representations.march import pack
from threedgen.representations.options import DMTetConfig
from threedgen.representations.shading import ALBEDO, NoMaterial, Shading
from threedgen.representations.volume.render import Background, Render

from .raster import antialias, surface_points
from .tetrahedra import marching_tetrahedra, tetrahedral_grid

MARGIN = 0.1
"""Room around the object that a grid begins with, as a share of its size."""
SMALLEST = 0.01
"""Parts with a smaller share of the largest one's points are left out at the start."""
THIN = 1e-5
"""Less dense than this is nothing, in the mean that is the level of the surface."""
TOGETHER = 1 << 16
"""Points that a field is asked for at once."""


class DMTet(Representation):
    """Distances (V,), negative inside, in units of their own; deformation (V, 3), in half cells after a tanh.

    `low` and `high` (3,) are the box of the grid in world units. `generator` (CPU) draws the paint's parameters.
    """

    rasterised = True
    low: Tensor
    high: Tensor
    points: Tensor
    tets: Tensor

    def __init__(self, options: DMTetConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = o = options or DMTetConfig()
        self.paint: Any = registry.build("representation", o.paint, generator=generator)
        points, tets = tetrahedral_grid(o.resolution)
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("tets", tets, persistent=False)
        radius = torch.full((3,), float(o.paint.radius))
        self.register_buffer("low", -radius)
        self.register_buffer("high", radius.clone())
        self.distance = nn.Parameter(torch.linalg.vector_norm(points * radius, dim=-1) - o.sphere)
        self.deformation = nn.Parameter(torch.zeros_like(points))

    @property
    def encoding(self) -> Any:
        """That of the paint: it learns at a rate of its own."""
        return self.paint.encoding

    def geometry(self) -> list[Tensor]:
        """The parameters of the shape: they too may learn at a rate of their own."""
        return [self.distance, self.deformation]

    def at_step(self, step: int, max_steps: int | None = None) -> None:
        """The paint's levels, as its options say for this step."""
        self.paint.at_step(step, max_steps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3) -> density and features (N, F) of the paint; only the latter has a meaning here."""
        return self.paint(x)

    def grid(self) -> Tensor:
        """Points (V, 3) of the grid where they are now, in world units."""
        half = (self.high - self.low) / 2
        return (self.low + self.high) / 2 + half * (self.points + self.deformation.tanh() / self.options.resolution)

    def surface(self) -> tuple[Tensor, Tensor]:
        """Vertices (N, 3) in world units, differentiable, and faces (F, 3). The outermost points count as outside."""
        border = (self.points.abs() > 1 - 1e-6).any(dim=-1)
        distance = torch.where(border, self.distance.abs() + 1e-6, self.distance)
        return marching_tetrahedra(self.grid(), distance, self.tets)

    def mesh(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The surface as arrays, float32 and int32, for files."""
        with torch.no_grad():
            vertices, faces = self.surface()
        return vertices.float().cpu().numpy(), faces.int().cpu().numpy()

    def render(
        self,
        cameras: Cameras,
        background: Background,
        material: NoMaterial,
        *,
        generator: torch.Generator | None = None,
        training: bool = False,
        light: Tensor | None = None,
        shading: Shading = ALBEDO,
    ) -> Render:
        """All pixels of all cameras, (B H W, ...), as `volume.render` gives them for a field.

        light (B, 3) is the point light of each view, which is at the camera if none is given.
        """
        device, count = self.distance.device, len(cameras) * cameras.height * cameras.width
        _, directions = (rays.reshape(-1, 3).to(device) for rays in cameras.rays())
        behind = background(directions, training=training, generator=generator)
        vertices, faces = self.surface()
        if len(faces):
            light = cameras.position if light is None else light
            columns = self._columns(vertices, faces, cameras, material, light.to(device), shading)
        else:  # nothing is left: a picture of the background, with a graph
            columns = behind.new_zeros(count, 9) + 0 * (self.distance.sum() + self.deformation.sum())
        rgb_fg, opacity, depth, normal, away = columns.split([3, 1, 1, 3, 1], dim=-1)
        none = behind.new_zeros(0)
        return Render(
            rgb=rgb_fg + behind * (1 - opacity),
            rgb_fg=rgb_fg,
            background=behind,
            opacity=opacity,
            depth=depth,
            z_variance=torch.zeros_like(opacity),
            shading=shading,
            samples=pack(none.long(), none, none, count),
            normal=(normal + opacity) / 2,
            away=away,
            surface=(vertices, faces) if len(faces) else None,
        )

    def _columns(
        self, vertices: Tensor, faces: Tensor, cameras: Cameras, material: NoMaterial, light: Tensor, shading: Shading
    ) -> Tensor:
        """Colour, opacity, depth, normal and `facing_away` of all pixels (B H W, 9), before a black background."""
        seen = surface_points(vertices, faces, cameras)
        _, features = self.paint(seen.position)
        light = light[seen.number // (cameras.height * cameras.width)]
        colours = material(features, seen.normal, seen.position, light, shading)
        away = facing_away(torch.ones_like(seen.depth), seen.normal, seen.directions)[:, None]
        parts = torch.cat([colours, torch.ones_like(away), seen.depth[:, None], seen.normal, away], dim=-1)
        flat = parts.new_zeros(seen.face.numel(), parts.shape[1]).index_copy(0, seen.number, parts)
        picture = flat.view(*seen.face.shape, -1)
        return antialias(picture, seen.face, vertices, faces, cameras).flatten(0, 2)

    @torch.no_grad()
    def start(self, other: nn.Module) -> None:
        """Begins from a field of the paint's kind, or from another mesh: its surface, and its colours.

        The grid is laid around the matter that is denser than `level`, with a margin; small parts are left out. Raises
        ConfigError for a field of another kind or without matter.
        """
        if isinstance(other, DMTet):
            super().start(other)
            return
        self.paint.start(other)
        field: Any = other
        density = self._density(field)
        level = self.options.level
        if level == "auto":
            level = float(density[density > THIN].mean()) if bool((density > THIN).any()) else 1.0
        inside = self._cube(density > level)
        if not inside.any():
            raise ConfigError(f"a mesh cannot begin from a field without matter: nothing is denser than {level:.3g}")
        places = self.grid()[torch.from_numpy(inside.reshape(-1)).to(density.device)]
        low, high = places.min(0).values, places.max(0).values
        room = MARGIN * (high - low) + (self.high - self.low) / self.options.resolution
        bound = float(self.options.paint.radius)
        self.low.copy_((low - room).clamp(-bound, bound))
        self.high.copy_((high + room).clamp(-bound, bound))
        density = self._density(field)
        kept = large_parts(self._cube(density > level))
        matter = torch.from_numpy(kept.reshape(-1)).to(density.device)
        distance = (level - density).clamp(-1, 1)
        self.distance.copy_(torch.where(matter, distance, distance.abs().clamp(min=1e-3)))
        self.deformation.zero_()

    def _density(self, field: Any) -> Tensor:
        """That of another field at the points of the grid."""
        return torch.cat([field.density(part).float() for part in self.grid().split(TOGETHER)])

    def _cube(self, values: Tensor) -> NDArray[np.bool_]:
        return values.view((self.options.resolution + 1,) * 3).cpu().numpy()


def large_parts(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the parts that have less than `SMALLEST` of the largest one's points."""
    labels, _ = ndimage.label(inside)
    sizes = np.bincount(labels.reshape(-1))
    sizes[0] = 0
    return (sizes >= SMALLEST * sizes.max())[labels] & inside
