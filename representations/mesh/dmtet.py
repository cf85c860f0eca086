"""DMTet (Shen et al. 2021): a mesh from signed distances on a tetrahedral grid, coloured by a field.

Each grid point has a trained distance and a trained offset of up to half a cell. In Magic3D (Lin et al.
2023), a field is trained first; then the method `init_from` initialises the mesh from it, and the mesh is trained.
"""

from collections.abc import Callable
from itertools import combinations, permutations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from threedgen.config import ConfigError, registry
from threedgen.geometry.cameras import Cameras
from threedgen.representations.base import Field, ParameterGroup, Regulariser, Render, Representation
from threedgen.representations.field.ngp import EncodedField
from threedgen.representations.losses import laplacian, normal_consistency, orientation_terms
from threedgen.representations.options import DMTetConfig
from threedgen.representations.shading import ALBEDO, Material, Shading
from threedgen.run.memory import to_device
from threedgen.run.seeding import generator as seeded

from .raster import antialias, surface_points

EDGES = tuple(combinations(range(4), 2))  # the six edges of a tetrahedron, as pairs of corner numbers 0 to 3
TRIANGLES = (
    (),
    (0, 1, 2),
    (4, 3, 0),
    (1, 2, 4, 1, 4, 3),
    (1, 3, 5),
    (3, 5, 2, 3, 2, 0),
    (0, 4, 5, 0, 5, 1),
    (2, 4, 5),
    (5, 4, 2),
    (0, 1, 5, 0, 5, 4),
    (2, 5, 3, 2, 3, 0),
    (5, 3, 1),
    (1, 3, 4, 1, 4, 2),
    (0, 3, 4),
    (2, 1, 0),
    (),
)
"""Triangles in a tetrahedron for each of the 16 bit masks of inside corners (bit k: corner k).

An entry has up to two triangles, as three or six indices into `EDGES`: a triangle has its corners on three edges. In a
tetrahedron of positive volume, triangles are counter-clockwise seen from outside.
"""


def tetrahedral_grid(resolution: int) -> tuple[Tensor, Tensor]:
    """Divide the cube [-1, 1]^3 into resolution^3 cells of six tetrahedra each (Kuhn's division).

    Returns:
        Points (V, 3) float32: with n = resolution + 1, point (i, j, k) of the grid has index (i n + j) n + k.
        Tetrahedra (T, 4) int64 of positive volume, as point indices. Neighbouring tetrahedra share whole triangles.
    """
    n = resolution + 1
    axis = torch.linspace(-1, 1, n)
    points = torch.cartesian_prod(axis, axis, axis)
    cells = torch.arange(resolution)
    first = ((cells[:, None, None] * n + cells[:, None]) * n + cells).reshape(-1)
    stride, parts = (n * n, n, 1), []
    for order in permutations(range(3)):
        path = np.cumsum([0, *(stride[k] for k in order)])
        odd = sum(a > b for a, b in combinations(order, 2)) % 2
        corners = path[[0, 1, 3, 2]] if odd else path
        parts.append(first[:, None] + torch.from_numpy(corners))
    return points, torch.cat(parts)


def marching_tetrahedra(points: Tensor, distance: Tensor, tets: Tensor) -> tuple[Tensor, Tensor]:
    """Extract the surface distance = 0 of a tetrahedral grid.

    Args:
        points: (V, 3) grid points.
        distance: (V,) signed distances, negative inside, in any unit.
        tets: (T, 4) int64 point indices of tetrahedra with positive volume.

    Returns:
        Vertices (N, 3) in the coordinates of `points`, differentiable in points and distance.
        Faces (F, 3) int64, counter-clockwise seen from outside. The surface is closed if no border point of the grid is
            inside.
    """
    inside, device = distance.detach() < 0, tets.device
    code = (inside[tets] * to_device(torch.tensor([1, 2, 4, 8]), device)).sum(1)
    cut = ((code > 0) & (code < 15)).nonzero()[:, 0]
    tets, code = tets[cut], code[cut]
    ends = tets[:, to_device(torch.tensor(EDGES), device)].sort(dim=-1).values.flatten(0, 1)  # (6 M, 2)
    crossed = (inside[ends[:, 0]] != inside[ends[:, 1]]).nonzero()[:, 0]
    count = len(points)
    keys, vertex_index = torch.unique(ends[crossed, 0] * count + ends[crossed, 1], return_inverse=True)
    vertex = torch.full((len(ends),), -1, device=device).index_copy(0, crossed, vertex_index).view(-1, len(EDGES))
    a, b = keys // count, keys % count
    # the gradient of index_select adds up in a fixed order
    at_a, at_b = distance.index_select(0, a), distance.index_select(0, b)
    from_a, from_b = points.index_select(0, a), points.index_select(0, b)
    vertices = from_a + (at_a / (at_a - at_b))[:, None] * (from_b - from_a)
    table = torch.tensor([edges + (-1,) * (6 - len(edges)) for edges in TRIANGLES])
    edges = to_device(table, device)[code]
    faces = vertex.gather(1, edges.clamp(min=0)).reshape(-1, 3)
    return vertices, faces[edges.reshape(-1, 3)[:, 0] >= 0]


MARGIN = 0.1  # margin around the object in the initial grid, as a fraction of the object's size
MIN_PART_SIZE = 0.01  # minimum grid points in a connected part of the initial mesh, relative to the largest part
EMPTY_DENSITY = 1e-5  # highest density of empty points; `level=auto` is the mean density of the other points
POINTS_PER_QUERY = 1 << 16  # maximum number of points per density query
COLOUR_STEPS, COLOUR_RATE = 300, 0.01  # steps and learning rate of the fit of the paint to given colours


class DMTet(Representation):
    """Mesh that is the zero level set of distances on a tetrahedral grid of V points, coloured by a field.

    The parameter `distance` (V,) is negative inside, in arbitrary units. The tanh of the parameter `deformation` (V, 3)
    is the offset of a grid point, in half cells. The field `paint` gives the features of surface points, from which a
    material computes colours. The CPU generator `generator` initialises this field.
    """

    rasterised = True
    paint: EncodedField  # gives the features (colours before the material) of surface points
    low: Tensor  # (3,) smallest corner of the grid in world units
    high: Tensor  # (3,) largest corner
    points: Tensor  # (V, 3) grid points without offsets, in [-1, 1]^3
    tets: Tensor  # (T, 4) int64 point indices of the tetrahedra

    def __init__(self, options: DMTetConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = o = options or DMTetConfig()
        self.paint = registry.build("representation", o.paint, generator=generator)
        points, tets = tetrahedral_grid(o.resolution)
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("tets", tets, persistent=False)
        radius = torch.full((3,), float(o.paint.radius))
        self.register_buffer("low", -radius)
        self.register_buffer("high", radius.clone())
        self.distance = nn.Parameter(torch.linalg.vector_norm(points * radius, dim=-1) - o.sphere)
        self.deformation = nn.Parameter(torch.zeros_like(points))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the optimizer's parameter groups: those of the colour field and "geometry" (distances and offsets)."""
        encoding, *others = self.paint.parameter_groups()
        return [encoding, ParameterGroup("geometry", [self.distance, self.deformation], "geometry"), *others]

    def before_step(self, step: int, max_steps: int | None = None) -> None:
        self.paint.before_step(step, max_steps)

    def regularisers(self) -> dict[str, Regulariser]:
        """Return {name: function from a render to a scalar loss} for "normal_consistency" and "laplacian".

        Both losses smooth the surface. They are 0 for an empty mesh.
        """

        def of_surface(loss: Callable[[Tensor, Tensor], Tensor]) -> Regulariser:
            return lambda render: render.opacity.sum() * 0 if render.surface is None else loss(*render.surface)

        return {"normal_consistency": of_surface(normal_consistency), "laplacian": of_surface(laplacian)}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.paint(x)

    def density(self, x: Tensor) -> Tensor:
        return self.paint.density(x)

    def grid(self) -> Tensor:
        """Return the grid points (V, 3) in world units, moved by their trained offsets."""
        half = (self.high - self.low) / 2
        return (self.low + self.high) / 2 + half * (self.points + self.deformation.tanh() / self.options.resolution)

    def surface(self) -> tuple[Tensor, Tensor]:
        """Return vertices (N, 3) in world units, differentiable in the mesh's parameters, and faces (F, 3) int64."""
        border = (self.points.abs() > 1 - 1e-6).any(dim=-1)  # counts as outside, so that the surface is closed
        distance = torch.where(border, self.distance.abs() + 1e-6, self.distance)
        return marching_tetrahedra(self.grid(), distance, self.tets)

    def mesh(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Return the surface as arrays: vertices (N, 3) float32 in world units and faces (F, 3) int32."""
        with torch.no_grad():
            vertices, faces = self.surface()
        return vertices.float().cpu().numpy(), faces.int().cpu().numpy()

    def render(
        self,
        cameras: Cameras,
        background: nn.Module,
        material: Material,
        *,
        generator: torch.Generator | None = None,
        training: bool = False,
        light: Tensor | None = None,
        shading: Shading = ALBEDO,
    ) -> Render:
        device, count = self.distance.device, len(cameras) * cameras.height * cameras.width
        _, directions = (rays.reshape(-1, 3) for rays in cameras.to(device).rays())
        background_rgb = background(directions, training=training, generator=generator)
        vertices, faces = surface = self.surface()
        if len(faces):
            light = cameras.position if light is None else light
            columns = self._columns(*surface, cameras, material, to_device(light, device), shading)
        else:  # empty mesh: return the background and keep the graph
            columns = background_rgb.new_zeros(count, 9) + 0 * (self.distance.sum() + self.deformation.sum())
        rgb_fg, opacity, depth, normal, orientation = columns.split([3, 1, 1, 3, 1], dim=-1)
        return Render(
            rgb=rgb_fg + background_rgb * (1 - opacity),
            rgb_fg=rgb_fg,
            background=background_rgb,
            opacity=opacity,
            depth=depth,
            z_variance=torch.zeros_like(opacity),
            shading=shading,
            normal=(normal + opacity) / 2,
            orientation=orientation,
            surface=surface if len(faces) else None,
        )

    def _columns(
        self, vertices: Tensor, faces: Tensor, cameras: Cameras, material: Material, light: Tensor, shading: Shading
    ) -> Tensor:
        # (B * H * W, 9): colour (3), opacity, depth, normal (3) and orientation term of each pixel
        points = surface_points(vertices, faces, cameras)
        _, features = self.paint(points.position)
        light = light[points.pixel // (cameras.height * cameras.width)]
        colours = material(features, points.normal, points.position, light, shading)
        terms = orientation_terms(torch.ones_like(points.depth), points.normal, points.directions)[:, None]
        values = torch.cat([colours, torch.ones_like(terms), points.depth[:, None], points.normal, terms], dim=-1)
        flat = values.new_zeros(points.face.numel(), values.shape[1]).index_copy(0, points.pixel, values)
        image = flat.view(*points.face.shape, -1)
        return antialias(image, points.face, vertices, faces, cameras).flatten(0, 2)

    @torch.no_grad()
    def init_from(self, other: Representation) -> None:
        """Initialise shape and colours from a trained field, or copy `other` if it is a DMTet.

        The field `paint`, which colours the mesh, becomes a copy of `other`. The shape is found in these steps:

        1. Choose the density of the surface: the option `level`, or for "auto" the mean of all densities above 1e-5 on
           the initial grid.
        2. Fit the grid's box, with a margin, to the grid points whose density exceeds this value.
        3. On the fitted grid, set the distances so that the surface is where the density has this value. Small separate
           parts are left out.

        Raises ConfigError if `other` is neither a DMTet nor of the same class as `paint`, if its tensor shapes differ,
        or if no density on the grid exceeds the value of step 1.
        """
        if isinstance(other, DMTet):
            super().init_from(other)
            return
        self.paint.init_from(other)
        self._init_shape(other.density)

    @torch.no_grad()
    def init_from_functions(self, density: Field, colour: Field) -> None:
        """Initialise shape and colours from two functions of world points (N, 3).

        `density` returns densities (N,), `colour` sRGB colours (N, 3) in [0, 1]. The surface is where the density is
        half of its maximum on the grid. Raises ConfigError if the density is 0 everywhere.
        """
        peak = self._values(density).max()
        if not peak > 0:
            raise ConfigError("the previous object is empty: no density. Train its stage longer", "stages")

        def height(x: Tensor) -> Tensor:
            # 1 on the surface. Linear in the distance where the density is a sigmoid of it, as that of fused depths is.
            return 1 + 0.25 * (density(x) / peak).clamp(0.001, 0.999).logit()

        self._init_shape(height, 1.0)
        vertices, _ = self.surface()
        colours = torch.cat([colour(part) for part in vertices.split(POINTS_PER_QUERY)])
        optimizer = torch.optim.Adam(self.paint.parameters(), COLOUR_RATE)
        rng = seeded(0, 0, "colours")
        with torch.enable_grad():
            for _ in range(COLOUR_STEPS):
                batch = torch.randint(len(vertices), (POINTS_PER_QUERY >> 4,), generator=rng)
                optimizer.zero_grad()
                error = self.paint(vertices[batch])[1][:, :3].sigmoid() - colours[batch]
                error.square().mean().backward()
                optimizer.step()

    def _init_shape(self, density_at: Field, level: float | None = None) -> None:
        # distances whose zero is where the density equals `level`; None: the option `level`
        density = self._values(density_at)
        if level is None:
            level = self._level(density)
        inside = density > level
        if not inside.any():
            raise ConfigError(f"the field is empty: no density above level={level:.3g}. Train its stage longer")
        occupied = self.grid()[inside]
        low, high = occupied.min(0).values, occupied.max(0).values
        margin = MARGIN * (high - low) + (self.high - self.low) / self.options.resolution
        bound = float(self.options.paint.radius)
        self.low.copy_((low - margin).clamp(-bound, bound))
        self.high.copy_((high + margin).clamp(-bound, bound))
        density = self._values(density_at)
        cube = (density > level).view((self.options.resolution + 1,) * 3)
        solid = torch.from_numpy(remove_small_parts(cube.cpu().numpy()).reshape(-1)).to(density.device)
        distance = (level - density).clamp(-1, 1)
        self.distance.copy_(torch.where(solid, distance, distance.abs().clamp(min=1e-3)))
        self.deformation.zero_()

    def _level(self, density: Tensor) -> float:
        if self.options.level != "auto":
            return self.options.level
        return float(density[density > EMPTY_DENSITY].mean()) if bool((density > EMPTY_DENSITY).any()) else 1.0

    def _values(self, density: Field) -> Tensor:
        return torch.cat([density(part).float() for part in self.grid().split(POINTS_PER_QUERY)])


def remove_small_parts(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a copy of a bool mask `inside` (G, G, G), True inside an object, without its small connected parts.

    Points are connected to their neighbours along the three axes. A part is small if it has fewer points than
    1% of the largest part (`MIN_PART_SIZE`).
    """
    labels, _ = ndimage.label(inside)
    sizes = np.bincount(labels.reshape(-1))
    sizes[0] = 0
    return (sizes >= MIN_PART_SIZE * sizes.max())[labels] & inside
