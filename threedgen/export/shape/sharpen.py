"""Remove the noise of an extracted surface and keep its edges sharp.

Marching cubes cuts off edges, and a plain blur rounds them. Here, normals are averaged only on one side of an edge:
each face takes the mean normals of the patches around its corners, weighted by how flat the patches are (a Kuwahara
filter; Zhang et al. 2015 guide their filter in the same way). Then vertices move until the faces have these normals
(Sun et al. 2007).
"""

import numpy as np
from numba import njit

from threedgen.export.shape.topology import area_vectors
from threedgen.geometry.raster import unit
from threedgen.run.arrays import Array

SHAPE_NOISE, SHADING_NOISE = 0.01, 0.03
"""Limits below which the unevenness of a patch (1 - length of its mean normal) counts as noise and not as an edge.

The first limit is for moving vertices, the second one for vertex normals, in which noise is more visible.
"""
EDGE_ROUNDS, MOVES = 3, 10  # rounds of the filter before vertices move, and the number of moves


def sharpen(vertices: Array, faces: Array) -> Array:
    """Return the vertices (V, 3) float32 of a mesh, moved so that flat regions become smooth and edges sharp.

    Takes vertices (V, 3) and faces (F, 3). A vertex usually moves by less than the length of its edges.
    """
    normals, areas = _normals_and_areas(vertices, faces)
    normals = _filter(normals, areas, faces, len(vertices), EDGE_ROUNDS, SHAPE_NOISE)
    return _move(vertices.astype(np.float64), faces, normals, MOVES).astype(np.float32)


def sharp_normals(vertices: Array, faces: Array, rounds: int) -> Array:
    """Return unit vertex normals (V, 3) float32 of a mesh whose face normals are smoothed, but not across sharp edges.

    Takes vertices (V, 3) and faces (F, 3). Each of `rounds` passes of a filter smooths the face normals; more passes
    remove coarser noise. A vertex normal is the area-weighted mean of the smoothed normals of the faces around it.
    """
    normals, areas = _normals_and_areas(vertices, faces)
    normals = _filter(normals, areas, faces, len(vertices), rounds, SHADING_NOISE)
    return unit(_sums(normals, areas, faces, len(vertices))[0]).astype(np.float32)


def _normals_and_areas(vertices: Array, faces: Array) -> tuple[Array, Array]:
    vectors = area_vectors(vertices, faces)
    return unit(vectors), np.linalg.norm(vectors, axis=1)


@njit(cache=True)
def _sums(normals, areas, faces, count):
    # sums (V, 3) of the area-weighted normals, and (V,) of the areas, of the faces around each of `count` vertices
    total, area = np.zeros((count, 3)), np.zeros(count)
    for f in range(len(faces)):
        for k in range(3):
            v = faces[f, k]
            area[v] += areas[f]
            for axis in range(3):
                total[v, axis] += areas[f] * normals[f, axis]
    return total, area


@njit(cache=True)
def _filter(normals, areas, faces, count, rounds, noise):
    # face normals (F, 3) after `rounds` of the filter; a patch is the faces around a vertex
    for _ in range(rounds):
        patch, area = _sums(normals, areas, faces, count)
        for v in range(count):
            length = max(np.sqrt(patch[v, 0] ** 2 + patch[v, 1] ** 2 + patch[v, 2] ** 2), 1e-30)
            uneven = max(1 - length / max(area[v], 1e-30), 0.0)
            for axis in range(3):
                patch[v, axis] /= length * (uneven + noise) ** 2
        normals = np.empty_like(normals)
        for f in range(len(faces)):
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            for axis in range(3):
                normals[f, axis] = patch[a, axis] + patch[b, axis] + patch[c, axis]
            length = max(np.sqrt(normals[f, 0] ** 2 + normals[f, 1] ** 2 + normals[f, 2] ** 2), 1e-30)
            for axis in range(3):
                normals[f, axis] /= length
    return normals


@njit(cache=True)
def _move(points, faces, normals, moves):
    # vertices (V, 3) after `moves`, each onto the mean of the planes through the middles of the faces around it
    for _ in range(moves):
        shift, count = np.zeros_like(points), np.zeros(len(points))
        for f in range(len(faces)):
            a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
            nx, ny, nz = normals[f, 0], normals[f, 1], normals[f, 2]
            height = (
                nx * (points[a, 0] + points[b, 0] + points[c, 0])
                + ny * (points[a, 1] + points[b, 1] + points[c, 1])
                + nz * (points[a, 2] + points[b, 2] + points[c, 2])
            ) / 3
            for v in (a, b, c):
                step = height - (nx * points[v, 0] + ny * points[v, 1] + nz * points[v, 2])
                shift[v, 0] += step * nx
                shift[v, 1] += step * ny
                shift[v, 2] += step * nz
                count[v] += 1
        points = points + shift / np.maximum(count, 1.0).reshape(-1, 1)
    return points
