"""Reduce the number of triangles of a mesh. Closed meshes stay closed.

The library fast_simplification runs first. Where its result would not be closed, and for levels of detail that share
the textures of the fine mesh, half-edge collapses are used (`collapse`).
"""

import fast_simplification
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from threedgen.config.errors import ConfigError
from threedgen.export.shape.collapse import collapse
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.shape.topology import compact, topology, weld
from threedgen.run.arrays import Array

AGGRESSION = 3.0  # option `agg` of fast_simplification; larger values leave more non-manifold edges
STOPS = (1.0, 1.15, 1.5, 2.5, 5.0)
"""Target numbers of triangles for fast_simplification, as multiples of the triangle budget.

Targets are tried in order until the result is valid: closed like the input, with the same number of components. Then
`collapse` reduces the result to the budget.
"""
CONTACT = 0.01  # maximum height of a ground contact above the lowest vertex, as a fraction of the mesh height


def simplify(vertices: Array, faces: Array, budget: int, nearest: bool = False) -> tuple[Array, Array]:
    """Reduce a mesh to at most `budget` triangles. A mesh within the budget is returned unchanged.

    Takes and returns vertices (V, 3) float32 and faces (F, 3) int32. A closed solid stays closed. Usually the result
    has at most two triangles fewer than the budget. If the shape needs more triangles than the budget: with `nearest`,
    the mesh is reduced to the smallest possible number; otherwise ConfigError is raised.
    """
    if len(faces) <= budget:
        return vertices, faces
    original = topology(vertices, faces)
    for stop in STOPS:
        target = int(stop * budget)
        if target >= len(faces):
            break
        points, triangles = _library(vertices, faces, target)
        result = topology(points, triangles)
        if result.manifold < original.manifold or result.solid < original.solid or result.parts != original.parts:
            continue
        if len(triangles) > budget:
            triangles, _ = collapse(points, triangles, budget)
        if len(triangles) <= budget and topology(points, triangles).solid >= original.solid:
            return compact(points, triangles)[:2]
    triangles, _ = collapse(vertices, faces, budget)
    if len(triangles) > budget:  # find the minimum of the shape
        triangles, _ = collapse(vertices, faces, 0)
    if len(triangles) > budget:
        if not nearest:
            raise ConfigError(f"this shape needs at least {len(triangles)} triangles", "budget", budget)
        return simplify(vertices, faces, len(triangles))
    return compact(vertices, triangles)[:2]


def simplify_level(mesh: TexturedMesh, triangles: int) -> TexturedMesh:
    """Return a coarser level of detail of `mesh`, with at most `triangles` triangles.

    The result has more triangles if the shape and the UV seams do not allow fewer. The remaining vertices keep their
    position, normal, tangent and UV, so that all levels can use the same texture. The bounding box and the contact with
    the ground do not change.
    """
    points, faces, _ = weld(mesh.vertices, mesh.faces)
    _, corners = collapse(points, faces, triangles, mesh.faces, mesh.uv, support(points, faces))
    used, index = np.unique(corners, return_inverse=True)
    faces = index.reshape(-1, 3).astype(np.int32)
    return TexturedMesh(mesh.vertices[used], faces, mesh.normals[used], mesh.uv[used], mesh.tangents[used])


def support(vertices: Array, faces: Array) -> Array:
    """Return the indices of vertices that must stay to preserve the bounding box and the contact with the ground.

    The ground contacts are the connected parts of the surface, such as feet, that are at most 1 % (CONTACT) of the
    mesh height above the lowest vertex. For each part, the farthest vertex in each of the 4 directions that are
    diagonal in the x-y plane is returned. The vertices with the lowest and the highest x, y and z are returned too.
    Takes vertices (V, 3), z up, and faces (F, 3).
    """
    height = vertices[:, 2] - vertices[:, 2].min()
    low = height <= CONTACT * max(float(height.max()), 1e-30)
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = ends[low[ends].all(axis=1)]
    graph = sparse.coo_matrix((np.ones(len(ends), bool), ends.T), shape=(len(vertices),) * 2)
    foot, on_ground = csgraph.connected_components(graph, directed=False)[1], np.flatnonzero(low)
    kept = [vertices.argmin(axis=0), vertices.argmax(axis=0)]
    for diagonal in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        order = on_ground[np.argsort(-(vertices[on_ground, :2] @ diagonal), kind="stable")]
        kept.append(order[np.unique(foot[order], return_index=True)[1]])
    return np.unique(np.concatenate(kept))


def _library(vertices: Array, faces: Array, target: int) -> tuple[Array, Array]:
    # fast_simplification gets a copy of the mesh with a longest side of 1
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    size = max(float(np.ptp(vertices, axis=0).max()), 1e-30)
    unit = np.ascontiguousarray((vertices - middle) / size, np.float32)
    triangles = np.ascontiguousarray(faces, np.int32)
    points, triangles = fast_simplification.simplify(unit, triangles, target_count=target, agg=AGGRESSION)
    return (np.asarray(points) * size + middle).astype(np.float32), np.asarray(triangles).astype(np.int32)
