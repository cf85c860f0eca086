"""Extract the surface of a field as a closed mesh with vertex colours. Reject fields that fill the scene."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage, sparse
from skimage.measure import marching_cubes

from threedgen.config.errors import ConfigError
from threedgen.export.renders import ViewRenderer
from threedgen.export.shape.mesh import Mesh, vertex_normals
from threedgen.export.shape.opacity import HAZE, MIN_PART, EmptyField, depth_field
from threedgen.export.shape.sharpen import sharp_normals, sharpen
from threedgen.export.shape.topology import area_vectors, compact, pieces
from threedgen.representations.base import Field
from threedgen.run.arrays import Array

TAUBIN_STEPS = 3  # number of Taubin smoothing iterations; more of them round edges
NORMAL_REACH = 0.06  # reach of the normal filter, in scene radii. Finer relief is mostly training noise.
CHUNK = 1 << 17  # maximum number of points per field query
COLOUR_DEPTHS = (-0.5, 0.5, 1.5, 2.5)  # sample depths for vertex colours, in grid cells below the surface
MAX_BORDER_SHARE, CUT_BORDER_SHARE = 0.2, 0.01
"""Limits of the fraction of surface area on the scene boundary. Above the first one, the object cannot be exported.
Above the second one, a note says that the object is cut off."""
MAX_HALF_LIGHT_DEPTH = 0.02  # maximum of `half_light_depth`; above it, a note calls the object translucent


@dataclass(frozen=True)
class FieldView:
    """Trained field, wrapped for the export: its density, colour and render functions, scene radius and occupancy.

    Lengths are in world units. For points in NumPy arrays, use `on_arrays(function, points)` and `colours(points)`.

    Attributes:
        density: function from points (N, 3), a torch tensor, to densities (N,) per world unit.
        colour: function from points (N, 3), a torch tensor, to sRGB colours (N, 3) in [0, 1].
        radius: radius of the scene sphere, which is centred at the origin and contains the object.
        mask: (M, M, M) bool, indexed [x, y, z]: which cells of the cube around the scene sphere are occupied; None:
            all.
        device: device of the points.
        renderer: function from V cameras to unlit images of the field: sRGB colours (V, H, W, 3) and opacities (V, H,
            W). None: the texture is not refined.
        mesh: for a representation that is itself a mesh, a function without arguments that returns its vertices (N, 3)
            and faces (F, 3); else None.
        elevations: lowest and highest elevation of the training cameras in degrees; None: unknown.
    """

    density: Field  # points (N, 3) in world units -> sigma (N,) per world unit
    colour: Field  # points (N, 3) in world units -> sRGB (N, 3) in [0, 1]
    radius: float = 1.0  # radius of the scene sphere about the origin, world units
    mask: Array | None = None  # occupancy (M, M, M) bool, [x, y, z], over the sphere's cube; None: all True
    device: torch.device | str = "cpu"  # device of the points
    renderer: ViewRenderer | None = None  # renders unlit images of the field; None: no texture refinement
    mesh: Callable[[], tuple[Array, Array]] | None = None  # mesh field: returns vertices (N, 3), faces (F, 3)
    elevations: tuple[float, float] | None = None  # range of the training cameras, degrees; None: unknown

    @torch.no_grad()
    def on_arrays(self, function: Field, points: Array) -> Array:
        """Evaluate `function`, one of `self.density` and `self.colour`, at points (N, 3) in world units, in chunks.

        Returns densities (N,) or colours (N, 3), float32.
        """
        parts = torch.from_numpy(np.ascontiguousarray(points, np.float32)).split(CHUNK)
        return np.concatenate([function(part.to(self.device)).float().cpu().numpy() for part in parts])

    def colours(self, points: Array) -> Array:
        """Return sRGB colours (N, 3) in [0, 1] at points (N, 3) in world units."""
        return np.clip(self.on_arrays(self.colour, points), 0, 1)


def dense_surface(field: FieldView, resolution: int) -> tuple[Mesh, list[str]]:
    """Extract the surface of a field (`field_surface`) and check it.

    Args:
        resolution: number of grid points per edge of the cube around the scene sphere.

    Returns:
        The mesh, and notes for the user: one if the object is cut off, with more than 1 % of its surface on the
            boundary of the scene sphere, and one if it is translucent.

    Raises:
        EmptyField: if the field has no surface.
        ConfigError: if more than 20 % of the surface lies on the boundary of the scene sphere.
    """
    mesh = field_surface(field, resolution)
    area = np.linalg.norm(area_vectors(mesh.vertices, mesh.faces), axis=1)
    middle = mesh.vertices[mesh.faces].astype(np.float64).mean(axis=1)
    border = np.linalg.norm(middle, axis=1) > field.radius - 4 * field.radius / (resolution - 1)  # two grid cells
    share = float(area[border].sum() / max(area.sum(), 1e-30))
    if share > MAX_BORDER_SHARE:
        problem = f"the object fills the scene: {share:.0%} of its surface lies on the scene boundary"
        raise ConfigError(f"{problem}. Train longer or raise loss.sparsity")
    notes = []
    if share > CUT_BORDER_SHARE:
        notes.append(f"the object is cut off at the scene boundary: {share:.0%} of its surface. Try another seed")
    depth = half_light_depth(mesh)
    if depth > MAX_HALF_LIGHT_DEPTH:
        notes.append(
            f"the object is translucent: half of the light reaches {depth:.0%} of its size deep. Thin parts may be "
            "lost; train longer (trainer.max_steps), use refine or raise loss.opaque"
        )
    return mesh, notes


def half_light_depth(mesh: Mesh) -> float:
    """Return the depth below the surface that half of the light reaches, as a fraction of the mesh's longest side.

    The depth is ln 2 / density in world units, divided by the longest side of the mesh's bounding box. The density (per
    world unit) is a typical one of the object. `field_surface` stores 0.1 (`HAZE`) times this density as
    `mesh.info["haze"]`. Without this entry, as for a representation that is itself a mesh, the result is 0.
    """
    density = float(mesh.info.get("haze", 0.0)) / HAZE
    size = float(np.ptp(mesh.vertices, axis=0).max())
    return math.log(2) / density / size if density > 0 else 0.0


def field_surface(field: FieldView, resolution: int) -> Mesh:
    """Extract the surface of a field inside the scene sphere as a closed mesh with vertex colours, in world units.

    If the representation is itself a mesh, the result is that mesh without small connected pieces. Otherwise:

    1. The density is sampled on a grid with `resolution` points per edge of the cube around the sphere, and blurred. To
       remove haze, 0.1 (`HAZE`) times the object's typical density (see `typical_density`) is subtracted.
    2. The optical depth tau of each grid point is computed. Six straight lines along the axes lead from the cube's
       border to the point. The density is integrated along each, and tau is the smallest of the six integrals.
    3. Marching cubes extract the surface tau = ln 2 / 2. A wall that stops half of the light has the integral ln 2, so
       tau is ln 2 / 2 in its middle, and weaker walls are not found. If, at the typical density, light reaches this tau
       after less than 0.008 or more than 0.03 scene radii, the surface is instead at about the tau of this limit.
    4. Small connected pieces are removed, and the mesh is smoothed.

    Raises EmptyField for a field without a surface.
    """
    if field.mesh is not None:
        vertices, faces = field.mesh()
        if not len(faces) or not np.isfinite(vertices).all():
            raise EmptyField("the mesh has no triangles or is not finite; use a smaller learning rate or another seed")
        vertices, faces, parts = large_pieces(vertices.astype(np.float32), faces.astype(np.int32))
        normals = vertex_normals(vertices, faces)
        return Mesh(vertices, faces, field.colours(vertices), normals, {"parts_kept": parts})
    cell = 2 * field.radius / (resolution - 1)
    tau, info = depth_field(sample_density(field, resolution), cell, field.radius)
    vertices, faces, info["parts_kept"] = large_pieces(*isosurface(tau, info["level"], cell, field.radius))
    vertices = sharpen(taubin(vertices, faces, TAUBIN_STEPS), faces)
    normals = sharp_normals(vertices, faces, math.ceil((NORMAL_REACH * field.radius / cell) ** 2))
    colours = surface_colours(field, vertices, normals, cell)
    return Mesh(vertices, faces, colours, normals, info | {"resolution": resolution, "radius": field.radius})


def sample_density(field: FieldView, resolution: int) -> Array:
    """Sample the density of a field at R = `resolution` grid points per edge of the cube around the scene sphere.

    Returns densities (R, R, R) float32, indexed [x, y, z], at linspace(-radius, radius, R) per axis; 0 outside the
    sphere. The field is queried only in occupied (True) cells of the grid `field.mask` and in the neighbours of these
    cells; elsewhere the density is 0. Raises EmptyField if the density is not finite.
    """
    axis = np.linspace(-field.radius, field.radius, resolution, dtype=np.float32)
    queried = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) <= field.radius**2
    if field.mask is not None:
        dilated = ndimage.binary_dilation(field.mask, np.ones((3, 3, 3), bool))
        cells = [np.clip(((axis / field.radius + 1) / 2 * n).astype(int), 0, n - 1) for n in field.mask.shape]
        queried &= dilated[np.ix_(*cells)]
    sigma = np.zeros((resolution,) * 3, np.float32)
    if queried.any():
        sigma[queried] = field.on_arrays(field.density, axis[np.argwhere(queried)]).reshape(-1)
    if not np.isfinite(sigma).all():
        raise EmptyField("the density is not finite, so there is no surface; use another seed")
    return np.maximum(sigma, 0, out=sigma)


def isosurface(values: Array, level: float, cell: float, radius: float) -> tuple[Array, Array]:
    """Extract the isosurface {values = level} of a grid (R, R, R), indexed [x, y, z], by marching cubes.

    Values are larger inside the object. The grid has the spacing `cell` in world units and starts at -radius on each
    axis. Returns vertices (V, 3) float32 in world units and faces (F, 3) int32, counter-clockwise seen from outside.
    """
    vertices, faces, _, _ = marching_cubes(
        values, level, spacing=(cell,) * 3, gradient_direction="ascent", allow_degenerate=False
    )
    return (vertices - radius).astype(np.float32), faces.astype(np.int32)


def large_pieces(vertices: Array, faces: Array) -> tuple[Array, Array, int]:
    """Remove connected components whose area is below 1 % (MIN_PART) of the area of the largest one.

    Takes vertices (V, 3) and faces (F, 3). Returns the remaining vertices (V', 3), their faces (F', 3) int32 and the
    number of remaining components. Closed meshes stay closed.
    """
    piece = pieces(faces, len(vertices))
    areas = np.bincount(piece, np.linalg.norm(area_vectors(vertices, faces), axis=1))
    large = areas >= MIN_PART * areas.max()
    vertices, faces, _ = compact(vertices, faces[large[piece]])
    return vertices, faces, int(large.sum())


def taubin(vertices: Array, faces: Array, iterations: int) -> Array:
    """Smooth a mesh without shrinking it (Taubin 1995), `iterations` times; return the vertices (V, 3) float32.

    Takes vertices (V, 3) and faces (F, 3).
    """
    mean = _mean_of_neighbours(faces, len(vertices))
    moved = vertices.astype(np.float64)
    for _ in range(iterations):
        for factor in (0.5, -0.53):
            moved += factor * (mean @ moved - moved)
    return moved.astype(np.float32)


def _mean_of_neighbours(faces: Array, n: int) -> sparse.spmatrix:
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = np.concatenate([ends, ends[:, ::-1]])
    edges = sparse.csr_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    edges.data[:] = 1  # an edge shared by two faces was counted twice
    return sparse.diags(1 / np.maximum(np.asarray(edges.sum(axis=1)).ravel(), 1)) @ edges


def surface_colours(field: FieldView, vertices: Array, normals: Array, cell: float) -> Array:
    """Return vertex colours (V, 3) float32, sRGB in [0, 1], alpha-composited along a short ray into the surface.

    A ray has four samples at the spacing `cell`, from 0.5 `cell` above to 2.5 `cell` below the surface. A single query
    at the surface would return the undefined colour of a nearly transparent layer. `vertices` (V, 3) and `cell` are in
    world units, `normals` (V, 3) are unit and outward.
    """
    transmittance = np.ones(len(vertices), np.float32)
    total = np.zeros((len(vertices), 3), np.float32)
    mean = np.zeros_like(total)
    for depth in COLOUR_DEPTHS:
        points = vertices - np.float32(depth * cell) * normals
        sigma = np.maximum(field.on_arrays(field.density, points).reshape(-1), 0)
        rgb = field.on_arrays(field.colour, points)
        step = np.exp(-sigma * cell)
        total += (transmittance * (1 - step))[:, None] * rgb
        mean += rgb / len(COLOUR_DEPTHS)
        transmittance *= step
    opacity = (1 - transmittance)[:, None]
    return np.clip(np.where(opacity > 1e-3, total / np.maximum(opacity, 1e-3), mean), 0, 1).astype(np.float32)
