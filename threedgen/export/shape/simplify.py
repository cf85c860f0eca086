"""A closed mesh with a triangle budget: the library's fast collapses first, careful ones where those do harm."""

from __future__ import annotations

import fast_simplification
import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.collapse import collapse
from threedgen.export.shape.topology import compact, topology, weld
from threedgen.run.arrays import Array

AGGRESSION = 3.0
"""Of fast_simplification: larger values are no faster here and leave more edges without two faces."""
STOPS = (1.0, 1.15, 1.5, 2.5, 5.0)
"""Where the library is stopped, in budgets, until what it leaves is whole; the rest is done by `collapse`."""


class BudgetTooSmall(ConfigError):
    """The shape needs more triangles than the budget allows; `possible` is how few it came to."""

    def __init__(self, budget: int, possible: int) -> None:
        self.budget, self.possible = budget, possible
        super().__init__(f"budget: should be at least {possible} triangles for this shape (got {budget})")


def simplify(vertices: Array, faces: Array, budget: int) -> tuple[Array, Array]:
    """The mesh with at most `budget` triangles: vertices (V, 3) float32, faces (F, 3) int32.

    A mesh that is a solid stays one. It comes as near to the budget as losing two triangles at a time allows,
    unless that is close to the fewest that the shape can have. A mesh within the budget is returned as it is.
    Raises BudgetTooSmall, with the number that is possible.
    """
    if len(faces) <= budget:
        return vertices, faces
    whole = topology(vertices, faces)
    for stop in STOPS:
        target = int(stop * budget)
        if target >= len(faces):
            break
        points, triangles = _library(vertices, faces, target)
        found = topology(points, triangles)
        if found.manifold < whole.manifold or found.solid < whole.solid or found.parts != whole.parts:
            continue
        if len(triangles) > budget:
            triangles, _ = collapse(points, triangles, budget)
        if len(triangles) <= budget and topology(points, triangles).solid >= whole.solid:
            return _finish(points, triangles)
    triangles, _ = collapse(vertices, faces, budget)
    if len(triangles) > budget:  # as few as the shape allows, whatever the budget: the number that is named
        triangles, _ = collapse(vertices, faces, 0)
    if len(triangles) > budget:
        raise BudgetTooSmall(budget, len(triangles))
    return _finish(vertices, triangles)


def level(mesh: TexturedMesh, triangles: int) -> TexturedMesh:
    """The mesh with at most so many triangles, or as few as its shape and its seams allow.

    What is left of it has the places, normals, tangents and UVs that it had, so it wears the same textures.
    """
    points, faces, _ = weld(mesh.vertices, mesh.faces)
    _, rows = collapse(points, faces, triangles, mesh.faces, mesh.uv)
    used, number = np.unique(rows, return_inverse=True)
    corners = number.reshape(-1, 3).astype(np.int32)
    return TexturedMesh(mesh.vertices[used], corners, mesh.normals[used], mesh.uv[used], mesh.tangents[used])


def _library(vertices: Array, faces: Array, target: int) -> tuple[Array, Array]:
    """fast_simplification in a box of size 1."""
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
