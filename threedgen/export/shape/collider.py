"""Make collision shapes: one convex hull with few triangles, or several convex parts that follow the object's shape."""

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from threedgen.config.errors import ConfigError
from threedgen.config.optional import require
from threedgen.export.shape.simplify import BudgetTooSmall, simplify
from threedgen.export.shape.topology import area_vectors
from threedgen.run.arrays import Array

Part = tuple[Array, Array]
"""Convex mesh: vertices (V, 3) float32, faces (F, 3) int32, counter-clockwise seen from outside."""

DIRECTIONS = 64
MAX_PARTS, MAX_PART_VERTICES, MAX_INPUT_TRIANGLES = 8, 32, 3000


def hull(vertices: Array) -> Part:
    """Return a convex hull of vertices (V, 3) with at most 2 * DIRECTIONS triangles.

    The points are scaled to a cube. The hull uses only the farthest point in each of DIRECTIONS directions: both
    directions of each axis, and points of a Fibonacci lattice on the sphere. It lies inside the full hull and has about
    90 % of the full hull's volume. Raises ConfigError for points without volume.
    """
    n = np.arange(DIRECTIONS) + 0.5
    height, azimuth = 1 - 2 * n / DIRECTIONS, np.pi * (1 + 5**0.5) * n
    ring = np.sqrt(1 - height**2)
    lattice = np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), height], axis=1)
    axes = np.concatenate([np.eye(3), -np.eye(3)])  # keep the mesh's bounding box
    points = vertices.astype(np.float64)
    scaled = points / np.maximum(np.ptp(points, axis=0), 1e-30)
    extreme = np.unique((np.concatenate([axes, lattice])[:DIRECTIONS] @ scaled.T).argmax(axis=1))
    return convex(points[extreme])


def convex(points: Array) -> Part:
    """Return the convex hull of points (N, 3), with faces oriented outwards. Raises ConfigError if it has no volume."""
    try:
        result = ConvexHull(points)
    except (QhullError, ValueError) as error:
        raise ConfigError("the shape is flat and has no convex hull; set collision=none", "collision") from error
    faces = result.simplices.astype(np.int64)
    inward = (area_vectors(points, faces) * result.equations[:, :3]).sum(axis=1) < 0
    faces[inward] = faces[inward, ::-1]
    used, index = np.unique(faces, return_inverse=True)
    return points[used].astype(np.float32), index.reshape(-1, 3).astype(np.int32)


def convex_parts(vertices: Array, faces: Array) -> list[Part]:
    """Decompose a closed mesh into at most 8 convex parts of at most 32 vertices each (CoACD, Wei et al. 2022).

    Vertices (V, 3) at equal positions must be merged (`topology.weld`); faces are (F, 3). Raises ConfigError if the
    package coacd is missing.
    """
    require("coacd", "collision: parts", "set collision=hull")
    import coacd

    try:
        vertices, faces = simplify(vertices, faces, MAX_INPUT_TRIANGLES)  # CoACD takes minutes on fine meshes
    except BudgetTooSmall as error:
        vertices, faces = simplify(vertices, faces, error.possible)
    coacd.set_log_level("error")
    parts = coacd.run_coacd(
        coacd.Mesh(vertices.astype(np.float64), faces),
        threshold=0.1,
        max_convex_hull=MAX_PARTS,
        preprocess_mode="off",
        mcts_iterations=50,
        mcts_nodes=10,
        resolution=1000,
        decimate=True,
        max_ch_vertex=MAX_PART_VERTICES,
        seed=0,
    )
    return [convex(np.asarray(points, np.float64)) for points, _ in parts]
