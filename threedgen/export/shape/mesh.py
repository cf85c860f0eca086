"""Turn density and colour fields into a closed triangle mesh with vertex colours."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage, sparse
from skimage.measure import marching_cubes

from threedgen.export.shape.opacity import EmptyField, depth_field
from threedgen.export.shape.topology import area_vectors, compact, pieces
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree

Field = Callable[[torch.Tensor], torch.Tensor]
"""Function of points (N, 3) in world units; it returns density (N,) or colour (N, 3)."""
MIN_PIECE_AREA = 0.01
"""Smallest area of a connected piece that is kept, as a fraction of the largest piece's area."""
TAUBIN_STEPS = 10
"""Number of Taubin smoothing iterations."""
NORMAL_BLUR = 0.03
"""Standard deviation of the normal blur, in scene radii. Finer relief is mostly training noise."""
CHUNK = 1 << 17
"""Maximum number of points per field query."""
COLOUR_DEPTHS = (-0.5, 0.5, 1.5, 2.5)
"""Sample depths for vertex colours, in grid cells below the surface; negative values are above it."""


@dataclass(frozen=True)
class Mesh:
    """Closed triangle mesh in world axes (z up, front +x) and world units.

    Attributes:
        vertices: (V, 3) float32.
        faces: (F, 3) int32, counter-clockwise seen from outside.
        colours: (V, 3) float32, sRGB in [0, 1].
        normals: (V, 3) float32, unit, outward.
        info: statistics of the extraction, by name, for the glTF extras.
    """

    vertices: Array
    faces: Array
    colours: Array
    normals: Array
    info: Tree = field(default_factory=dict)


def on_arrays(function: Field, device: torch.device | str = "cpu") -> Callable[[Array], Array]:
    """Wrap a torch function of points so that it takes and returns NumPy arrays, without gradients.

    The wrapped function takes points (N, 3), evaluates them on `device` in chunks of CHUNK, and returns float32.
    """

    @torch.no_grad()
    def call(points: Array) -> Array:
        parts = torch.from_numpy(np.ascontiguousarray(points, np.float32)).split(CHUNK)
        return np.concatenate([function(part.to(device)).float().cpu().numpy() for part in parts])

    return call


def extract(
    density_fn: Field,
    colour_fn: Field,
    resolution: int = 128,
    radius: float = 1.0,
    *,
    mask: Array | None = None,
    device: torch.device | str = "cpu",
) -> Mesh:
    """Extract the surface of a field inside a sphere about the origin, as a closed mesh with vertex colours.

    Args:
        density_fn: points (N, 3) in world units -> sigma (N,) per world unit.
        colour_fn: points (N, 3) in world units -> sRGB (N, 3) in [0, 1].
        resolution: grid points per edge of the cube around the sphere.
        radius: radius of the sphere, in world units.
        mask: occupancy (M, M, M) bool over that cube, [x, y, z]; only True cells and their neighbours are queried.
        device: device of the points.

    Raises:
        EmptyField: the field has no surface.
    """
    sigma = sample_density(density_fn, resolution, radius, mask, device)
    cell = 2 * radius / (resolution - 1)
    tau, info = depth_field(sigma, cell, radius, MIN_PIECE_AREA)
    vertices, faces, info["parts_kept"] = large_pieces(*isosurface(tau, info["level"], cell, radius))
    vertices = taubin(vertices, faces, TAUBIN_STEPS)
    normals = smooth_normals(vertex_normals(vertices, faces), faces, NORMAL_BLUR * radius / cell)
    density, colour = (on_arrays(function, device) for function in (density_fn, colour_fn))
    colours = surface_colours(density, colour, vertices, normals, cell)
    info |= {"resolution": resolution, "radius": radius}
    return Mesh(vertices, faces, colours, normals, info)


def from_triangles(vertices: Array, faces: Array, colours: Callable[[Array], Array]) -> Mesh:
    """Make a Mesh from the triangles of a mesh field, without small connected pieces.

    Takes vertices (N, 3) in world units, faces (F, 3), and a function points (N, 3) -> sRGB (N, 3) in [0, 1]. Raises
    EmptyField if there are no triangles or a vertex is not finite.
    """
    if not len(faces):
        raise EmptyField("the mesh has no triangles; use a smaller learning rate or another seed")
    if not np.isfinite(vertices).all():
        raise EmptyField("the mesh has vertices that are not finite; use another seed")
    vertices, faces, parts = large_pieces(vertices.astype(np.float32), faces.astype(np.int32))
    return Mesh(vertices, faces, colours(vertices), vertex_normals(vertices, faces), {"parts_kept": parts})


def sample_density(
    density_fn: Field, resolution: int, radius: float, mask: Array | None = None, device: torch.device | str = "cpu"
) -> Array:
    """Sample the density on a grid over the cube around the scene sphere. Arguments are those of `extract`.

    Returns sigma (R, R, R) float32, indexed [x, y, z], at linspace(-radius, radius, R) per axis. It is 0 outside the
    sphere and outside the mask. Raises EmptyField if the density is not finite.
    """
    axis = np.linspace(-radius, radius, resolution, dtype=np.float32)
    queried = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) <= radius**2
    if mask is not None:
        dilated = ndimage.binary_dilation(mask, np.ones((3, 3, 3), bool))
        cells = [np.clip(((axis / radius + 1) / 2 * n).astype(int), 0, n - 1) for n in mask.shape]
        queried &= dilated[np.ix_(*cells)]
    x, y, z = np.nonzero(queried)
    sigma, density = np.zeros((resolution,) * 3, np.float32), on_arrays(density_fn, device)
    for start in range(0, len(x), CHUNK):  # all points at once would take three times the grid's memory
        part = tuple(index[start : start + CHUNK] for index in (x, y, z))
        points = np.stack([axis[index] for index in part], axis=-1)
        sigma[part] = density(points).reshape(-1)
    if not np.isfinite(sigma).all():
        raise EmptyField("the density is not finite, so there is no surface; use another seed")
    return np.maximum(sigma, 0, out=sigma)


def isosurface(values: Array, level: float, cell: float, radius: float) -> tuple[Array, Array]:
    """Extract the isosurface {values = level} of a grid (R, R, R), indexed [x, y, z], by marching cubes.

    Values are larger inside the object. The grid has the spacing `cell` and starts at -radius on each axis, in world
    units. Returns vertices (V, 3) float32 in world units and faces (F, 3) int32, counter-clockwise seen from outside.
    """
    vertices, faces, _, _ = marching_cubes(
        values, level, spacing=(cell,) * 3, gradient_direction="ascent", allow_degenerate=False
    )
    return (vertices - radius).astype(np.float32), faces.astype(np.int32)


def large_pieces(vertices: Array, faces: Array) -> tuple[Array, Array, int]:
    """Remove connected pieces with less than MIN_PIECE_AREA of the largest piece's area.

    Takes vertices (V, 3) and faces (F, 3); returns the used vertices (V', 3), renumbered faces (F', 3) int32 and the
    number of pieces that are kept. If the mesh is closed, each piece is closed, and so is the result.
    """
    piece = pieces(faces, len(vertices))
    areas = np.bincount(piece, np.linalg.norm(area_vectors(vertices, faces), axis=1))
    large = areas >= MIN_PIECE_AREA * areas.max()
    vertices, faces, _ = compact(vertices, faces[large[piece]])
    return vertices, faces, int(large.sum())


def taubin(vertices: Array, faces: Array, iterations: int) -> Array:
    """Smooth the steps of the grid and keep the volume: alternate shrinking and inflating steps (Taubin 1995).

    Takes vertices (V, 3) and faces (F, 3); returns the moved vertices (V, 3) float32.
    """
    mean = _mean_of_neighbours(faces, len(vertices))
    moved = vertices.astype(np.float64)
    for _ in range(iterations):
        for factor in (0.5, -0.53):
            moved += factor * (mean @ moved - moved)
    return moved.astype(np.float32)


def smooth_normals(normals: Array, faces: Array, reach: float) -> Array:
    """Blur unit normals (V, 3) along the surface; return unit normals (V, 3) float32.

    Each step averages a normal with the mean of its neighbours. The number of steps makes the result similar to a
    Gaussian blur with a standard deviation of `reach` edges. faces: (F, 3).
    """
    mean = _mean_of_neighbours(faces, len(normals))
    smooth = normals.astype(np.float64)
    for _ in range(math.ceil(4 * reach**2)):
        smooth = smooth + mean @ smooth
        smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-30)
    return np.where(np.linalg.norm(smooth, axis=1, keepdims=True) > 0.5, smooth, normals).astype(np.float32)


def _mean_of_neighbours(faces: Array, n: int) -> sparse.spmatrix:
    """Return the sparse matrix (n, n) that replaces each vertex value by the mean over the vertex's edge neighbours."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = np.concatenate([ends, ends[:, ::-1]])
    edges = sparse.csr_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    edges.data[:] = 1  # an edge shared by two faces was counted twice
    return sparse.diags(1 / np.maximum(np.asarray(edges.sum(axis=1)).ravel(), 1)) @ edges


def vertex_normals(vertices: Array, faces: Array) -> Array:
    """Return unit vertex normals (V, 3) float32: the area-weighted mean of the adjacent face normals.

    Takes vertices (V, 3) and faces (F, 3), counter-clockwise seen from outside. Undefined normals become (0, 0, 1).
    """
    twice_area = area_vectors(vertices, faces)
    total = np.zeros((len(vertices), 3))
    for k in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(faces[:, k], twice_area[:, axis], len(vertices))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    up = np.array([0.0, 0.0, 1.0])
    return np.where(length > 0, total / np.maximum(length, 1e-30), up).astype(np.float32)


def surface_colours(
    density: Callable[[Array], Array], colour: Callable[[Array], Array], vertices: Array, normals: Array, cell: float
) -> Array:
    """Return vertex colours (V, 3) float32, sRGB in [0, 1], alpha-composited along a short ray into the surface.

    The ray has samples at COLOUR_DEPTHS cells below the surface. A single query at the surface would return the
    undefined colour of a nearly transparent layer.

    Args:
        density: points (N, 3) in world units -> sigma (N,) per world unit.
        colour: points (N, 3) -> sRGB (N, 3).
        vertices: (V, 3) in world units.
        normals: (V, 3), unit, outward.
        cell: edge of a grid cell in world units.
    """
    transmittance = np.ones(len(vertices), np.float32)
    total = np.zeros((len(vertices), 3), np.float32)
    mean = np.zeros_like(total)
    for depth in COLOUR_DEPTHS:
        points = vertices - np.float32(depth * cell) * normals
        sigma, rgb = np.maximum(density(points).reshape(-1), 0), colour(points).reshape(-1, 3)
        step = np.exp(-sigma * cell)
        total += (transmittance * (1 - step))[:, None] * rgb
        mean += rgb / len(COLOUR_DEPTHS)
        transmittance *= step
    opacity = (1 - transmittance)[:, None]
    return np.clip(np.where(opacity > 1e-3, total / np.maximum(opacity, 1e-3), mean), 0, 1).astype(np.float32)
