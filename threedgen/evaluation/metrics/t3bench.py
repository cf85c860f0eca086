"""Scores meshes by T3Bench's quality protocol (arXiv 2310.02977), for those who have its network.

A mesh is seen from the 162 corners of an icosphere at 5 zooms; of each corner the best zoom counts; three rounds of
averaging with the neighbours punish a good side among bad ones; the best corner is the score.

    score = quality_of(mesh, reward)       reward: (512, 512, 3) in [0, 1] -> ImageReward-v1.0 for the prompt
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import numpy as np

from threedgen.data.coloured_mesh import ColouredMesh
from threedgen.geometry.poses import look_at
from threedgen.run.arrays import Array

ZOOMS = (3.0, 4.0, 5.0, 6.0, 7.5)
"""The vertical field of view is pi over this."""
DISTANCE, SIZE, ROUNDS = 2.2, 512, 3


def icosphere(subdivisions: int = 2) -> tuple[Array, Array]:
    """Makes corners (N, 3) on the unit sphere, 162 of them by default, and the edges (E, 2) between them, each once."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=subdivisions)
    return np.asarray(ball.vertices, np.float64), np.asarray(ball.edges_unique, np.int64)


def smoothed(values: Array, edges: Array, rounds: int = ROUNDS) -> Array:
    """Smooths values (N,) of corners, each round replaced by (own + sum of neighbours) / (1 + number of neighbours)."""
    near = np.eye(len(values))
    near[edges[:, 0], edges[:, 1]] = near[edges[:, 1], edges[:, 0]] = 1
    for _ in range(rounds):
        values = near @ values / near.sum(1)
    return values


def quality(rewards: Array, edges: Array, rounds: int = ROUNDS) -> float:
    """Scores 20 r + 50 of the best corner, from rewards (N, Z) of N corners at Z zooms; below 50 or above 100 too."""
    return float(20 * smoothed(np.asarray(rewards, np.float64).max(1), edges, rounds).max() + 50)


def cameras(corners: Array) -> Array:
    """Places c2w (N, 4, 4) at ``corners`` at distance 2.2; up is z, but y for who looks along z."""
    import torch

    corners = np.asarray(corners, np.float64)
    along = np.abs(corners[:, 2]) / np.linalg.norm(corners, axis=1) >= 0.99
    up = np.where(along[:, None], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])
    position = torch.from_numpy(DISTANCE * corners).float()
    return look_at(position, torch.zeros_like(position), torch.from_numpy(up).float()).numpy()


def quality_of(mesh: ColouredMesh, reward: Callable[[Array], float], size: int = SIZE, subdivisions: int = 2) -> float:
    """Scores a mesh, unlit on black: 810 pictures by default."""
    corners, edges = icosphere(subdivisions)
    mesh, poses = fitted(mesh), cameras(corners)
    rewards = [[reward(mesh.render(pose[None], pi / zoom, size, 0.0)[0]) for zoom in ZOOMS] for pose in poses]
    return quality(np.array(rewards), edges)


def fitted(mesh: ColouredMesh) -> ColouredMesh:
    """Moves a mesh by the mean of its vertices, those at one place counted once, and scales it into [-1, 1]."""
    points = np.unique(mesh.corners.reshape(-1, 3), axis=0)
    middle = points.mean(0)
    scale = np.abs(points - middle).max()
    return mesh.map_corners(lambda corners: (corners - middle) / scale)
