"""Reduce a closed mesh to a triangle budget. The library fast_simplification runs first; where its result would not be
closed, `collapse` continues from a finer mesh."""

import fast_simplification
import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.collapse import collapse
from threedgen.export.shape.topology import compact, topology, weld
from threedgen.run.arrays import Array

AGGRESSION = 3.0
"""Option `agg` of fast_simplification. Larger values are not faster here and leave more non-manifold edges."""
STOPS = (1.0, 1.15, 1.5, 2.5, 5.0)
"""Target triangles of the library in multiples of the budget. They are tried in order until the result is valid;
`collapse` then reduces the mesh to the budget."""


class BudgetTooSmall(ConfigError):
    """Error for a triangle budget that is too small for the shape; `possible` is the smallest possible budget."""

    def __init__(self, budget: int, possible: int) -> None:
        self.budget, self.possible = budget, possible
        super().__init__(f"budget: this shape needs at least {possible} triangles (got {budget})")


def simplify(vertices: Array, faces: Array, budget: int) -> tuple[Array, Array]:
    """Reduce a mesh to at most `budget` triangles. A mesh within the budget is returned unchanged.

    Takes and returns vertices (V, 3) float32 and faces (F, 3) int32. A closed solid stays closed. The result is within
    two triangles of the budget, unless the budget is close to the smallest possible number for the shape. Raises
    BudgetTooSmall with that number if the budget is smaller.
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
            return _finish(points, triangles)
    triangles, _ = collapse(vertices, faces, budget)
    if len(triangles) > budget:  # find the minimum of the shape for the error message
        triangles, _ = collapse(vertices, faces, 0)
    if len(triangles) > budget:
        raise BudgetTooSmall(budget, len(triangles))
    return _finish(vertices, triangles)


def simplify_level(mesh: TexturedMesh, triangles: int) -> TexturedMesh:
    """Return a level of detail with at most `triangles` triangles, or with as few as the shape and UV seams allow.

    The remaining vertices keep their position, normal, tangent and UV, so that all levels can use the same texture.
    """
    points, faces, _ = weld(mesh.vertices, mesh.faces)
    _, corners = collapse(points, faces, triangles, mesh.faces, mesh.uv)
    used, index = np.unique(corners, return_inverse=True)
    faces = index.reshape(-1, 3).astype(np.int32)
    return TexturedMesh(mesh.vertices[used], faces, mesh.normals[used], mesh.uv[used], mesh.tangents[used])


def _library(vertices: Array, faces: Array, target: int) -> tuple[Array, Array]:
    """Run fast_simplification on the mesh, scaled to a longest side of 1; return vertices and faces at full scale."""
    middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    size = max(float(np.ptp(vertices, axis=0).max()), 1e-30)
    points, triangles = fast_simplification.simplify(
        np.ascontiguousarray((vertices - middle) / size, np.float32),
        np.ascontiguousarray(faces, np.int32),
        target_count=target,
        agg=AGGRESSION,
    )
    return (np.asarray(points) * size + middle).astype(np.float32), np.asarray(triangles).astype(np.int32)


def _finish(vertices: Array, faces: Array) -> tuple[Array, Array]:
    points, triangles, _ = compact(vertices, faces)
    return np.ascontiguousarray(points, np.float32), triangles
