"""Is a triangle mesh the closed, oriented surface of a body? Counted from its edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from threedgen.run.arrays import Array

THIN = 1e-12
"""Area below which a triangle counts as degenerate, for a mesh whose longest side is 1."""


@dataclass(frozen=True)
class Topology:
    """What edges and faces say of a mesh; a closed body has zeros from `open_edges` to `degenerate`."""

    triangles: int
    vertices: int
    """Vertices that a face uses."""
    open_edges: int
    """Edges of one face: the border of a hole."""
    crowded_edges: int
    """Edges of three faces or more: where sheets touch."""
    twisted_edges: int
    """Edges whose two faces run along them the same way, so that one of them faces inwards."""
    degenerate: int
    """Triangles without area, or with the same vertex twice."""
    parts: int
    """Pieces that no face joins; the wall of a cavity is one as well."""
    volume: float
    """Signed, in cubic units of the vertices; positive if the faces look outwards."""

    @property
    def manifold(self) -> bool:
        """Does every edge have exactly two faces that agree about where outside is?"""
        return not (self.open_edges or self.crowded_edges or self.twisted_edges)

    @property
    def solid(self) -> bool:
        """Is it the outside of a body: manifold, no triangle without area, volume above zero?"""
        return self.manifold and not self.degenerate and self.volume > 0


def topology(vertices: Array, faces: Array) -> Topology:
    """Counts of a mesh with vertices (V, 3) that are shared between its faces (F, 3); see `weld` for others."""
    if not len(faces):
        return Topology(0, 0, 0, 0, 0, 0, 0, 0.0)
    lower, way = directed_edges(faces)
    _, which, users = unique_pairs(lower)
    balance = np.bincount(which, way)
    return Topology(
        triangles=len(faces),
        vertices=len(np.unique(faces)),
        open_edges=int((users == 1).sum()),
        crowded_edges=int((users > 2).sum()),
        twisted_edges=int(((users == 2) & (balance != 0)).sum()),
        degenerate=int(degenerate(vertices, faces).sum()),
        parts=int(pieces(faces, len(vertices)).max()) + 1,
        volume=signed_volume(vertices, faces),
    )


def area_vectors(vertices: Array, faces: Array) -> Array:
    """For each face the vector (F, 3) float64 along its normal, outwards, whose length is twice its area."""
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    return np.cross(b - a, c - a)


def directed_edges(faces: Array) -> tuple[Array, Array]:
    """Each face's three edges: (lower, higher) vertex (3F, 2) and direction, +1 or -1, (3F,)."""
    start = faces.T.reshape(-1).astype(np.int64)
    end = faces[:, [1, 2, 0]].T.reshape(-1).astype(np.int64)
    return np.sort(np.stack([start, end], axis=1), axis=1), np.where(start < end, 1, -1)


def unique_pairs(pairs: Array) -> tuple[Array, Array, Array]:
    """The different rows (U, 2) of whole numbers (N, 2), ascending; which of them each row is (N,); how often (U,)."""
    width = int(pairs.max(initial=0)) + 1
    keys, which, count = np.unique(pairs[:, 0] * width + pairs[:, 1], return_inverse=True, return_counts=True)
    return np.stack([keys // width, keys % width], axis=1), which.reshape(-1), count


def degenerate(vertices: Array, faces: Array) -> Array:
    """Which faces (F,) have no area to speak of."""
    used = vertices[np.unique(faces)].astype(np.float64)
    size = float(np.ptp(used, axis=0).max()) or 1.0
    twice = np.linalg.norm(area_vectors(vertices.astype(np.float64) / size, faces), axis=1)
    return ~(twice > 2 * THIN)  # NaN counts as degenerate


def pieces(faces: Array, vertices: int) -> Array:
    """The piece (F,) that each face belongs to, from 0 on: what hangs together over the `vertices` vertices."""
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = sparse.coo_matrix((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(vertices, vertices))
    _, label = csgraph.connected_components(graph, directed=False)
    return np.unique(label[faces[:, 0]], return_inverse=True)[1].reshape(-1)


def signed_volume(vertices: Array, faces: Array) -> float:
    """Volume inside the faces, positive if they are counter-clockwise seen from outside."""
    middle = vertices.astype(np.float64).mean(axis=0)  # far from the origin the sum would lose digits
    a, b, c = (vertices[faces[:, k]].astype(np.float64) - middle for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def weld(vertices: Array, faces: Array) -> tuple[Array, Array, Array]:
    """A mesh whose vertices of exactly the same place are one.

    Returns vertices (U, 3), faces (F, 3) int32 and, for each old vertex, its new one (V,) int32. UV seams
    split vertices; welded again, the mesh is what it was before.
    """
    places, first, which = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # in the order in which the mesh names them
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    renamed = rank[which.ravel()].astype(np.int32)
    return places[order], renamed[faces].astype(np.int32), renamed


def compact(vertices: Array, faces: Array) -> tuple[Array, Array, Array]:
    """Only the vertices that a face uses, faces renumbered, and the numbers (U,) of those that were kept."""
    used = np.unique(faces)
    number = np.full(len(vertices), -1, np.int64)
    number[used] = np.arange(len(used))
    return vertices[used], number[faces].astype(np.int32), used
