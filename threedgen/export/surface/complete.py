"""Fill texels without image data by diffusing the colours of known texels over the surface.

The code solves Laplace's equation on a nearest-neighbour graph. Different normals increase the distance between two
texels in the graph. Known texels keep their colours; every other texel gets the weighted mean of its neighbours.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from threedgen.run.arrays import Array

MAX_KNOWN, MAX_NODES = 200_000, 30_000
"""Maximum number of known texels and of solved texels; larger sets are sampled at random. Unknown texels that are not
solved are interpolated from their four nearest neighbours."""
NORMAL_DISTANCE = 0.2
"""Distance in the graph between two texels at one point with opposite normals, as a fraction of the longest side."""
NEIGHBOURS = 8
MAX_ANCHORS, ANCHOR_EPS = 20_000, 0.5
"""Maximum number of known texels in the search for the nearest known texel, and relative error of the distance."""
ANCHOR_WEIGHT = 1e-3
"""Weight of the link to the nearest known texel, relative to all neighbour links. It keeps the system solvable."""


@dataclass(frozen=True)
class SurfacePoints:
    """Positions of N texels on a mesh: points (N, 3), unit normals (N, 3), number of the connected component (N,)."""

    points: Array
    normals: Array
    piece: Array


def diffuse_colours(at: SurfacePoints, colours: Array, known: Array) -> Array:
    """Fill in the colours of unknown texels.

    The colours come from known texels of the same connected component if it has any, else from all known texels. Takes
    colours (N, C) and the mask `known` (N,); returns the colours (N, C) of all texels. Known texels do not change.
    """
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
    """Return at most `count` random elements of `index`, always the same ones."""
    return index if len(index) <= count else np.random.default_rng(0).permutation(index)[:count]


def _interpolate(known: Array, colours: Array, targets: Array) -> Array:
    """Return colours (M, C) at graph positions `targets` (M, D), from `colours` (N, C) at positions `known` (N, D)."""
    nodes = _subsample(np.arange(len(targets)), MAX_NODES)
    solved = _solve(known, colours, targets[nodes])
    if len(nodes) == len(targets):
        return solved
    distance, near = cKDTree(np.concatenate([known, targets[nodes]])).query(targets, 4)
    weight = 1 / (distance**2 + 1e-12)
    values = np.concatenate([colours, solved])[near]
    return (values * (weight / weight.sum(1, keepdims=True))[..., None]).sum(1).astype(np.float32)


def _solve(known: Array, colours: Array, nodes: Array) -> Array:
    """Solve Laplace's equation for the colours (M, C) of all nodes (M, D) by conjugate gradients."""
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
