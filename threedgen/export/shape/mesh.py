"""From a density and a colour field to a closed, coloured triangle mesh: the surface of opacity.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import ndimage, sparse
from skimage.measure import marching_cubes

from threedgen.export.shape.opacity import EmptyField, depth_field
from threedgen.export.shape.topology import area_vectors, compact, pieces
from threedgen.run.arrays import Array

Field = Callable[[torch.Tensor], torch.Tensor]
SMALLEST = 0.01
"""Share of the largest part's surface below which another part is dropped."""
SMOOTHING = 10
"""Taubin iterations."""
CALM = 0.03
"""Standard deviation of the blur of normals, in radii of the world: what a field does within that is the noise of
single steps, and no relief."""
CHUNK = 1 << 17
"""Points that a field is asked for at once."""
DEPTHS = (-0.5, 0.5, 1.5, 2.5)
"""In cells below the surface: where its colours are asked for."""


@dataclass(frozen=True)
class Mesh:
    """A closed triangle mesh in world axes (z up, front +x) and world units.

    vertices (V, 3) float32; faces (F, 3) int32, counter-clockwise seen from outside; colours (V, 3) float32,
    sRGB in [0, 1]; normals (V, 3) float32, unit, outward; info: how it was made.
    """

    vertices: Array
    faces: Array
    colours: Array
    normals: Array
    info: dict[str, Any] = field(default_factory=dict)


def on_arrays(function: Field, device: torch.device | str = "cpu") -> Callable[[Array], Array]:
    """`function` for arrays: points (N, 3), CHUNK at once, to float32, without gradients."""

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
    """The surface of a field inside the sphere of `radius` about the origin.

    density_fn: points (N, 3) in world units -> sigma (N,) per world unit; colour_fn: points -> sRGB (N, 3).
    resolution: grid points along an edge of the cube around the sphere. mask: boolean (M, M, M) over that
    cube, [x, y, z]; where it is False the field is empty and not asked (a cell of margin is added). Raises EmptyField.
    """
    sigma = sample_density(density_fn, resolution, radius, mask, device)
    cell = 2 * radius / (resolution - 1)
    tau, info = depth_field(sigma, cell, radius, SMALLEST)
    vertices, faces, info["parts_kept"] = large_pieces(*isosurface(tau, info["level"], cell, radius))
    vertices = taubin(vertices, faces, SMOOTHING)
    normals = calm(vertex_normals(vertices, faces), faces, CALM * radius / cell)
    density, colour = (on_arrays(function, device) for function in (density_fn, colour_fn))
    colours = surface_colours(density, colour, vertices, normals, cell)
    info |= {"resolution": resolution, "radius": radius}
    return Mesh(vertices, faces, colours, normals, info)


def from_triangles(vertices: Array, faces: Array, colours: Callable[[Array], Array]) -> Mesh:
    """A mesh that is one already, less its small pieces: vertices (N, 3), faces (F, 3). Raises EmptyField."""
    if not len(faces):
        raise EmptyField("the mesh has no triangles left; train with a smaller learning rate, or choose another seed")
    if not np.isfinite(vertices).all():
        raise EmptyField("the mesh has corners without a place, so nothing can be made of it; choose another seed")
    vertices, faces, parts = large_pieces(vertices.astype(np.float32), faces.astype(np.int32))
    return Mesh(vertices, faces, colours(vertices), vertex_normals(vertices, faces), {"parts_kept": parts})


def sample_density(
    density_fn: Field, resolution: int, radius: float, mask: Array | None = None, device: torch.device | str = "cpu"
) -> Array:
    """Density (R, R, R) float32 [x, y, z] at linspace(-radius, radius, R); 0 outside the sphere and the mask.

    Raises EmptyField if the field is not finite somewhere.
    """
    axis = np.linspace(-radius, radius, resolution, dtype=np.float32)
    asked = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) <= radius**2
    if mask is not None:
        roomy = ndimage.binary_dilation(mask, np.ones((3, 3, 3), bool))
        cells = [np.clip(((axis / radius + 1) / 2 * n).astype(int), 0, n - 1) for n in mask.shape]
        asked &= roomy[np.ix_(*cells)]
    x, y, z = np.nonzero(asked)
    sigma, density = np.zeros((resolution,) * 3, np.float32), on_arrays(density_fn, device)
    for start in range(0, len(x), CHUNK):  # the points too are made in chunks: they are three times the grid
        part = tuple(index[start : start + CHUNK] for index in (x, y, z))
        points = np.stack([axis[index] for index in part], axis=-1)
        sigma[part] = density(points).reshape(-1)
    if not np.isfinite(sigma).all():
        raise EmptyField("the object has densities that are no numbers, so it has no surface; choose another seed")
    return np.maximum(sigma, 0, out=sigma)


def isosurface(values: Array, level: float, cell: float, radius: float) -> tuple[Array, Array]:
    """Vertices (V, 3) float32 in world units and faces (F, 3) int32 of {values = level}, larger inside."""
    vertices, faces, _, _ = marching_cubes(
        values, level, spacing=(cell,) * 3, gradient_direction="ascent", allow_degenerate=False
    )
    return (vertices - radius).astype(np.float32), faces.astype(np.int32)


def large_pieces(vertices: Array, faces: Array) -> tuple[Array, Array, int]:
    """Only the pieces with at least SMALLEST of the largest one's area, and how many they are.

    What hangs together over a corner of the grid alone is one part there, and cut in two by the surface: the lesser of
    the two may be a crumb. Each piece is closed, so the rest stays closed.
    """
    piece = pieces(faces, len(vertices))
    areas = np.bincount(piece, np.linalg.norm(area_vectors(vertices, faces), axis=1))
    large = areas >= SMALLEST * areas.max()
    vertices, faces, _ = compact(vertices, faces[large[piece]])
    return vertices, faces, int(large.sum())


def taubin(vertices: Array, faces: Array, iterations: int) -> Array:
    """Removes the steps of the grid, keeps the volume: Laplacian steps in and out by turns (Taubin 1995)."""
    mean = _mean_of_neighbours(faces, len(vertices))
    moved = vertices.astype(np.float64)
    for _ in range(iterations):
        for factor in (0.5, -0.53):
            moved += factor * (mean @ moved - moved)
    return moved.astype(np.float32)


def calm(normals: Array, faces: Array, reach: float) -> Array:
    """Unit normals (V, 3) float32, blurred along the surface by `reach` edges: half their own and half those around, as
    often as it takes (the mean of neighbours moves by an edge, half of it along either axis of the surface)."""
    mean = _mean_of_neighbours(faces, len(normals))
    found = normals.astype(np.float64)
    for _ in range(math.ceil(4 * reach**2)):
        found = found + mean @ found
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-30)
    return np.where(np.linalg.norm(found, axis=1, keepdims=True) > 0.5, found, normals).astype(np.float32)


def _mean_of_neighbours(faces: Array, n: int) -> sparse.spmatrix:
    """The matrix (n, n) that takes values of vertices to the means of those that an edge joins them to."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = np.concatenate([ends, ends[:, ::-1]])
    edges = sparse.csr_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    edges.data[:] = 1  # an edge of two faces came twice
    return sparse.diags(1 / np.maximum(np.asarray(edges.sum(axis=1)).ravel(), 1)) @ edges


def vertex_normals(vertices: Array, faces: Array) -> Array:
    """Unit normals (V, 3) float32: the mean of the faces around, weighted by area."""
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
    """What a short ray along the inward normal sees: colours (V, 3) float32 in [0, 1].

    Composited like a pixel at DEPTHS, in cells below the surface: the colour of one point would be that of the
    skin, which a trained field leaves undefined where it is transparent.
    """
    light = np.ones(len(vertices), np.float32)
    total = np.zeros((len(vertices), 3), np.float32)
    plain = np.zeros_like(total)
    for depth in DEPTHS:
        points = vertices - np.float32(depth * cell) * normals
        sigma, rgb = np.maximum(density(points).reshape(-1), 0), colour(points).reshape(-1, 3)
        passed = np.exp(-sigma * cell)
        total += (light * (1 - passed))[:, None] * rgb
        plain += rgb / len(DEPTHS)
        light *= passed
    opacity = (1 - light)[:, None]
    return np.clip(np.where(opacity > 1e-3, total / np.maximum(opacity, 1e-3), plain), 0, 1).astype(np.float32)
