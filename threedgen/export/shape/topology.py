"""Topology of a triangle mesh: tests for a closed, oriented, solid surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from threedgen.run.arrays import Array

MIN_AREA = 1e-12
"""Area below which a triangle is degenerate, for a mesh whose longest side is 1."""


@dataclass(frozen=True)
class Topology:
    """Edge and face counts of a mesh; a closed solid has 0 from `open_edges` to `degenerate`."""

    triangles: int
    vertices: int  # used by faces
    open_edges: int  # with one face: border of a hole
    crowded_edges: int  # with three or more faces: non-manifold
    twisted_edges: int  # whose two faces have opposite winding
    degenerate: int  # triangles without area or with a repeated vertex
    parts: int  # connected components; the wall of a cavity counts as one
    volume: float  # signed, cubic vertex units; positive if faces point outwards

    @property
    def manifold(self) -> bool:
        """Return whether every edge has exactly two faces with consistent winding."""
        return not (self.open_edges or self.crowded_edges or self.twisted_edges)

    @property
    def solid(self) -> bool:
        """Return whether the mesh is manifold, has no degenerate triangle and positive volume."""
        return self.manifold and not self.degenerate and self.volume > 0


def topology(vertices: Array, faces: Array) -> Topology:
    """Count edges and faces of a mesh: vertices (V, 3), faces (F, 3). Call `weld` first if seams split vertices."""
    if not len(faces):
        return Topology(0, 0, 0, 0, 0, 0, 0, 0.0)
    edges, direction = directed_edges(faces)
    _, index, face_count = unique_pairs(edges)
    balance = np.bincount(index, direction)
    return Topology(
        triangles=len(faces),
        vertices=len(np.unique(faces)),
        open_edges=int((face_count == 1).sum()),
        crowded_edges=int((face_count > 2).sum()),
        twisted_edges=int(((face_count == 2) & (balance != 0)).sum()),
        degenerate=int(degenerate(vertices, faces).sum()),
        parts=int(pieces(faces, len(vertices)).max()) + 1,
        volume=signed_volume(vertices, faces),
    )


def area_vectors(vertices: Array, faces: Array) -> Array:
    """Return face normals (F, 3) float64, outward, with length twice the face area."""
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    return np.cross(b - a, c - a)


def directed_edges(faces: Array) -> tuple[Array, Array]:
    """Return the edges of all faces as (lower, higher) vertex pairs (3F, 2), and their direction (3F,), +1 or -1."""
    start = faces.T.reshape(-1).astype(np.int64)
    end = faces[:, [1, 2, 0]].T.reshape(-1).astype(np.int64)
    return np.sort(np.stack([start, end], axis=1), axis=1), np.where(start < end, 1, -1)


def unique_pairs(pairs: Array) -> tuple[Array, Array, Array]:
    """Return the distinct rows (U, 2) of integer pairs (N, 2), sorted; the index of each row (N,); the counts (U,)."""
    width = int(pairs.max(initial=0)) + 1
    keys, index, count = np.unique(pairs[:, 0] * width + pairs[:, 1], return_inverse=True, return_counts=True)
    return np.stack([keys // width, keys % width], axis=1), index.reshape(-1), count


def degenerate(vertices: Array, faces: Array) -> Array:
    """Return a mask (F,) of faces with negligible area."""
    used = vertices[np.unique(faces)].astype(np.float64)
    size = float(np.ptp(used, axis=0).max()) or 1.0
    twice = np.linalg.norm(area_vectors(vertices.astype(np.float64) / size, faces), axis=1)
    return ~(twice > 2 * MIN_AREA)  # NaN counts as degenerate


def pieces(faces: Array, vertices: int) -> Array:
    """Return the connected component (F,) of each face, numbered from 0; `vertices` is the vertex count."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = sparse.coo_matrix((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(vertices, vertices))
    _, label = csgraph.connected_components(graph, directed=False)
    return np.unique(label[faces[:, 0]], return_inverse=True)[1].reshape(-1)


def signed_volume(vertices: Array, faces: Array) -> float:
    """Return the enclosed volume, positive if faces are counter-clockwise seen from outside."""
    centre = vertices.astype(np.float64).mean(axis=0)  # far from the origin the sum would lose precision
    a, b, c = (vertices[faces[:, k]].astype(np.float64) - centre for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def weld(vertices: Array, faces: Array) -> tuple[Array, Array, Array]:
    """Merge vertices at exactly equal positions, which undoes the split at UV seams.

    Returns vertices (U, 3), faces (F, 3) int32 and the new index (V,) int32 of each old vertex.
    """
    positions, first, index = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # keep the mesh's own vertex order
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    new_index = rank[index.ravel()].astype(np.int32)
    return positions[order], new_index[faces].astype(np.int32), new_index


def compact(vertices: Array, faces: Array) -> tuple[Array, Array, Array]:
    """Return used vertices only, renumbered faces int32, and the old indices (U,) of the kept vertices."""
    used = np.unique(faces)
    new_index = np.full(len(vertices), -1, np.int64)
    new_index[used] = np.arange(len(used))
    return vertices[used], new_index[faces].astype(np.int32), used
