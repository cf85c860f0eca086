"""Fill texels without image data: diffuse colours over the surface from known texels.

Solves Laplace's equation on a nearest-neighbour graph in which texels with different normals are further apart. Known
texels keep their colours; every other texel becomes the mean of its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from threedgen.run.arrays import Array

MAX_KNOWN, MAX_NODES = 200_000, 30_000
"""Maximum texels that colours diffuse from and to; others are interpolated."""
NORMAL_DISTANCE = 0.2
"""Distance between opposite normals at one point, as a fraction of the mesh's longest side."""
NEIGHBOURS = 8
MAX_ANCHORS, ANCHOR_EPS = 20_000, 0.5
"""Known texels searched for the nearest colour, and the relative error of that search."""
ANCHOR_WEIGHT = 1e-3
"""Weight of the link to the nearest known texel relative to the neighbour links; keeps the system solvable."""


@dataclass(frozen=True)
class SurfacePoints:
    """N texels on a mesh: points (N, 3), unit normals (N, 3), connected component (N,) of the mesh."""

    points: Array
    normals: Array
    piece: Array


def diffuse_colours(at: SurfacePoints, colours: Array, known: Array) -> Array:
    """Return colours (N, C) of all texels from the `known` (N,) ones, of the same connected component if possible."""
    size = float(np.ptp(at.points, axis=0).max()) or 1.0
    features = np.concatenate([at.points / size, 0.5 * NORMAL_DISTANCE * at.normals], 1).astype(np.float32)
    sources, unknown = _subsample(np.flatnonzero(known), MAX_KNOWN), np.flatnonzero(~known)
    own = np.isin(at.piece[unknown], at.piece[sources])
    by_piece, result = np.column_stack([features, 10 * at.piece]), colours.copy()  # pieces are far apart
    for index, space in ((unknown[own], by_piece), (unknown[~own], features)):
        if len(index):
            result[index] = _interpolate(space[sources], colours[sources], space[index])
    return result


def _subsample(index: Array, count: int) -> Array:
    """Return at most `count` random elements."""
    return index if len(index) <= count else np.random.default_rng(0).permutation(index)[:count]


def _interpolate(known: Array, colours: Array, targets: Array) -> Array:
    """Return colours at `targets` (M, D) from colours at `known` points (N, D)."""
    nodes = _subsample(np.arange(len(targets)), MAX_NODES)
    solved = _solve(known, colours, targets[nodes])
    if len(nodes) == len(targets):
        return solved
    distance, near = cKDTree(np.concatenate([known, targets[nodes]])).query(targets, 4)
    weight = 1 / (distance**2 + 1e-12)
    values = np.concatenate([colours, solved])[near]
    return (values * (weight / weight.sum(1, keepdims=True))[..., None]).sum(1).astype(np.float32)


def _solve(known: Array, colours: Array, nodes: Array) -> Array:
    """Solve for the colours of all nodes (M, D)."""
    count, points = len(nodes), np.concatenate([nodes, known])
    distance, near = cKDTree(points).query(nodes, min(NEIGHBOURS + 1, len(points)))
    rows = np.repeat(np.arange(count), near.shape[1])
    weight = 1 / (distance.ravel() ** 2 + np.square(np.median(distance[:, -1])) + 1e-20)
    links = sparse.csr_matrix((weight * (near.ravel() != rows), (rows, near.ravel())), (count, len(points)))
    inner, outer = links[:, :count], links[:, count:]
    inner = inner.maximum(inner.T)
    anchors = _subsample(np.arange(len(known)), MAX_ANCHORS)
    nearest = anchors[cKDTree(known[anchors]).query(nodes, eps=ANCHOR_EPS)[1]]
    total = np.asarray(inner.sum(1)).ravel() + np.asarray(outer.sum(1)).ravel()
    anchor = ANCHOR_WEIGHT * np.maximum(total, 1e-20)
    matrix = sparse.diags(total + anchor) - inner
    right = outer @ colours + anchor[:, None] * colours[nearest]
    start, jacobi = colours[nearest], sparse.diags(1 / (total + anchor))
    solved = [
        cg(matrix, right[:, c], x0=start[:, c], rtol=1e-4, maxiter=500, M=jacobi)[0] for c in range(right.shape[1])
    ]
    return np.clip(np.stack(solved, 1), colours.min(0), colours.max(0)).astype(np.float32)
