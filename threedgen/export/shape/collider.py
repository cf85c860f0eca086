"""Collision shapes: one convex hull of few triangles, or several that follow the shape."""

from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from threedgen.config.errors import ConfigError
from threedgen.config.optional import require
from threedgen.export.shape.simplify import BudgetTooSmall, simplify
from threedgen.export.shape.topology import area_vectors
from threedgen.run.arrays import Array

Part = tuple[Array, Array]
"""vertices (V, 3) float32 and faces (F, 3) int32, convex, counter-clockwise seen from outside"""

DIRECTIONS = 64
PARTS, PART_VERTICES, PART_SOURCE = 8, 32, 3000


def hull(vertices: Array) -> Part:
    """The convex hull of the points that lie furthest in some directions: at most 2 * DIRECTIONS triangles.

    They are spread evenly (Fibonacci lattice) over the sphere of the shape scaled to a cube. The hull lies within
    the full one, of which it holds nine tenths of the volume or so. Raises ConfigError for points without volume.
    """
    n = np.arange(DIRECTIONS) + 0.5
    height, turn = 1 - 2 * n / DIRECTIONS, np.pi * (1 + 5**0.5) * n
    ring = np.sqrt(1 - height**2)
    away = np.stack([ring * np.cos(turn), ring * np.sin(turn), height], axis=1)
    axes = np.concatenate([np.eye(3), -np.eye(3)])  # so that the box around it is that of the mesh
    points = vertices.astype(np.float64)
    even = points / np.maximum(np.ptp(points, axis=0), 1e-30)
    furthest = np.unique((np.concatenate([axes, away])[:DIRECTIONS] @ even.T).argmax(axis=1))
    return convex(points[furthest])


def convex(points: Array) -> Part:
    """The convex hull of points (N, 3), with faces that look outwards. Raises ConfigError if it has no volume."""
    try:
        found = ConvexHull(points)
    except (QhullError, ValueError) as error:
        raise ConfigError("the shape is flat, so it has no convex hull; try collision=none", "collision") from error
    faces = found.simplices.astype(np.int64)
    inward = (area_vectors(points, faces) * found.equations[:, :3]).sum(axis=1) < 0
    faces[inward] = faces[inward, ::-1]
    used, number = np.unique(faces, return_inverse=True)
    return points[used].astype(np.float32), number.reshape(-1, 3).astype(np.int32)


def convex_parts(vertices: Array, faces: Array) -> list[Part]:
    """At most eight convex parts of at most 32 vertices each that follow a closed mesh (CoACD, Wei et al. 2022).

    vertices (V, 3), faces (F, 3), welded. Raises ConfigError if the library is not there.
    """
    require("coacd", "collision: parts", "take collision=hull")
    import coacd

    try:
        vertices, faces = simplify(vertices, faces, PART_SOURCE)  # it takes minutes on fine meshes
    except BudgetTooSmall as error:
        vertices, faces = simplify(vertices, faces, error.possible)
    coacd.set_log_level("error")
    found = coacd.run_coacd(
        coacd.Mesh(vertices.astype(np.float64), faces),
        threshold=0.1,
        max_convex_hull=PARTS,
        preprocess_mode="off",
        mcts_iterations=50,
        mcts_nodes=10,
        resolution=1000,
        decimate=True,
        max_ch_vertex=PART_VERTICES,
        seed=0,
    )
    return [convex(np.asarray(points, np.float64)) for points, _ in found]
