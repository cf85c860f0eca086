"""Test whether a triangle mesh is a closed, oriented solid. Also list edges and components, weld, compute volumes."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from threedgen.run.arrays import Array

MIN_AREA = 1e-12  # area below which a triangle is degenerate, for a mesh whose longest side is 1


@dataclass(frozen=True)
class Topology:
    """Counts of a mesh's defects, number of its components (`parts`) and volume; result of `topology`.

    In a closed solid, the four counts of defects are 0: `open_edges` (of one face), `non_manifold_edges` (of three or
    more faces), `inconsistent_edges` (of two faces with opposite winding), `degenerate` triangles (no area).
    """

    open_edges: int = 0  # defect: edges with one face, at the border of a hole
    non_manifold_edges: int = 0  # defect: edges with three or more faces
    inconsistent_edges: int = 0  # defect: edges whose two faces have opposite winding
    degenerate: int = 0  # defect: triangles without area or with a repeated vertex
    parts: int = 0  # number of connected components; the wall of a cavity is a component
    volume: float = 0.0  # signed, cubic vertex units; positive if faces point outwards

    @property
    def manifold(self) -> bool:
        """True if every edge has exactly two faces, and these have a consistent orientation."""
        return not (self.open_edges or self.non_manifold_edges or self.inconsistent_edges)

    @property
    def solid(self) -> bool:
        """True if the mesh is manifold, has no degenerate triangle, and has a positive volume."""
        return self.manifold and not self.degenerate and self.volume > 0


def topology(vertices: Array, faces: Array) -> Topology:
    """Count the defects and connected components of a mesh, vertices (V, 3) and faces (F, 3), and compute its volume.

    Defects are, for example, open edges. Vertices at equal positions must be merged first (`weld`); otherwise edges at
    UV seams count as open.
    """
    if not len(faces):
        return Topology()
    edges, direction = directed_edges(faces)
    _, index, face_count = unique_pairs(edges)
    balance = np.bincount(index, direction)
    return Topology(
        open_edges=int((face_count == 1).sum()),
        non_manifold_edges=int((face_count > 2).sum()),
        inconsistent_edges=int(((face_count == 2) & (balance != 0)).sum()),
        degenerate=int(degenerate(vertices, faces).sum()),
        parts=int(pieces(faces, len(vertices)).max()) + 1,
        volume=signed_volume(vertices, faces),
    )


def area_vectors(vertices: Array, faces: Array) -> Array:
    """Return normals (F, 3) float64 of faces (F, 3). The length of a normal is twice the area of the face.

    The normals point outwards if faces are counter-clockwise seen from outside. `vertices` are (V, 3).
    """
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    return np.cross(b - a, c - a)


def directed_edges(faces: Array) -> tuple[Array, Array]:
    """Return the edges of all faces (F, 3) as vertex pairs (3F, 2), lower index first, and their directions (3F,).

    The direction is +1 if the face runs from the lower to the higher index, else -1. Row k F + f is the
    edge of face f from corner k to the next corner.
    """
    start = faces.T.reshape(-1).astype(np.int64)
    end = faces[:, [1, 2, 0]].T.reshape(-1).astype(np.int64)
    return np.sort(np.stack([start, end], axis=1), axis=1), np.where(start < end, 1, -1)


def unique_pairs(pairs: Array) -> tuple[Array, Array, Array]:
    """Return the U distinct rows of integer pairs (N, 2), the index of each pair among them, and their counts.

    The distinct rows (U, 2) are sorted by the first, then by the second number. The indices are (N,). The counts (U,)
    say how often each distinct row occurs in `pairs`.
    """
    # np.unique with an axis is slower
    width = int(pairs.max(initial=0)) + 1
    keys, index, count = np.unique(pairs[:, 0] * width + pairs[:, 1], return_inverse=True, return_counts=True)
    return np.stack([keys // width, keys % width], axis=1), index.reshape(-1), count


def degenerate(vertices: Array, faces: Array) -> Array:
    """Return a bool mask (F,) of the faces (F, 3) with almost no area or with a repeated vertex.

    An area is too small if it is below 1e-12 (MIN_AREA) when the mesh, with vertices (V, 3), is scaled to a longest
    side of 1.
    """
    used = vertices[np.unique(faces)].astype(np.float64)
    size = float(np.ptp(used, axis=0).max()) or 1.0
    twice = np.linalg.norm(area_vectors(vertices.astype(np.float64) / size, faces), axis=1)
    return ~(twice > 2 * MIN_AREA)  # NaN counts as degenerate


def pieces(faces: Array, vertices: int) -> Array:
    """Return the label (F,) of the connected component of each face: 0 to C - 1 for C components.

    Faces with a common vertex are connected. Takes faces (F, 3) and `vertices`, the number of vertices.
    """
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = sparse.coo_matrix((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(vertices, vertices))
    _, label = csgraph.connected_components(graph, directed=False)
    return np.unique(label[faces[:, 0]], return_inverse=True)[1].reshape(-1)


def signed_volume(vertices: Array, faces: Array) -> float:
    """Return the volume of a closed mesh with vertices (V, 3) and faces (F, 3).

    The volume is negative if faces are clockwise seen from outside.
    """
    centre = vertices.astype(np.float64).mean(axis=0)  # far from the origin the sum would lose precision
    a, b, c = (vertices[faces[:, k]].astype(np.float64) - centre for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


def weld(vertices: Array, faces: Array) -> tuple[Array, Array, Array]:
    """Merge vertices at exactly equal positions, such as the copies of a vertex on a UV seam.

    Takes vertices (V, 3) and faces (F, 3). Returns the distinct vertices (U, 3) in the order of first occurrence, faces
    (F, 3) int32, and the new index (V,) int32 of each old vertex.
    """
    positions, first, index = np.unique(vertices, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # keep the mesh's own vertex order
    new_index = np.argsort(order)[index.ravel()].astype(np.int32)
    return positions[order], new_index[faces].astype(np.int32), new_index


def compact(vertices: Array, faces: Array) -> tuple[Array, Array, Array]:
    """Remove vertices (V, 3) that no face (F, 3) uses.

    Returns the used vertices (U, 3), faces (F, 3) int32 with new indices, and the old index (U,) of each used vertex.
    """
    used, index = np.unique(faces, return_inverse=True)
    return vertices[used], index.reshape(-1, 3).astype(np.int32), used
