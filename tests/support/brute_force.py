"""Intersections of lines with all triangles of a mesh, without an acceleration structure."""

import numpy as np

from threedgen.run.arrays import Array


def cross_triangles(vertices: Array, faces: Array, origins: Array, directions: Array) -> tuple[Array, Array, Array]:
    """Intersect lines (N, 3) with the planes of triangles (F, 3).

    Returns t (N, F) of the points; their smallest barycentric weight (N, F), negative outside the triangle; and the
    cosine of normal and direction, times twice the area (N, F).
    """
    a, b, c = (vertices[faces[:, k]].astype(float) for k in range(3))
    normal = np.cross(b - a, c - a)
    along = directions @ normal.T
    with np.errstate(divide="ignore", invalid="ignore"):
        t = ((a * normal).sum(-1) - origins @ normal.T) / along
        point, area = origins[:, None] + t[..., None] * directions[:, None], (normal**2).sum(-1)
        weights = [(np.cross(q - p, point - p) * normal).sum(-1) / area for p, q in ((b, c), (c, a), (a, b))]
    return t, np.min(weights, axis=0), along
