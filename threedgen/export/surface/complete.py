"""Colours of texels that no picture shows: colours diffuse on the surface, from the texels that are known.

The solution of Laplace's equation on the graph of nearest neighbours, in which a texel that faces elsewhere is farther
away. Known texels keep their colours; each of the others becomes the mean of its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from threedgen.run.arrays import Array

KNOWN, NODES = 200_000, 30_000
"""Texels that colours diffuse from, and to, at most; those between are interpolated."""
ASIDE = 0.2
"""How far away a texel of the same place is that faces the other way, as a share of the mesh's longest side."""
NEIGHBOURS = 8
ANCHORS, ROUGHLY = 20_000, 0.5
"""Known texels that the nearest is looked for among, where it may be far, and how much farther the one found may be."""
WEAK = 1e-3
"""Of the link of each texel to a near one that is known, beside those to its neighbours: no texel is without any."""


@dataclass(frozen=True)
class Places:
    """N texels on a mesh: points (N,3), normals (N,3), unit, and the piece (N,) of the mesh that each belongs to."""

    points: Array
    normals: Array
    piece: Array


def diffuse(at: Places, colours: Array, known: Array) -> Array:
    """Colours (N,C) of all texels, for those of the ``known`` (N,), bool; of a piece's own if any of it is known."""
    size = float(np.ptp(at.points, axis=0).max()) or 1.0
    places = np.concatenate([at.points / size, 0.5 * ASIDE * at.normals], 1).astype(np.float32)
    some, lost = _some(np.flatnonzero(known), KNOWN), np.flatnonzero(~known)
    own = np.isin(at.piece[lost], at.piece[some])
    whole, result = np.column_stack([places, 10 * at.piece]), colours.copy()  # no piece is near another
    for chosen, where in ((lost[own], whole), (lost[~own], places)):
        if len(chosen):
            result[chosen] = _spread(where[some], colours[some], where[chosen])
    return result


def _some(index: Array, most: int) -> Array:
    """At most so many of them, evenly chosen."""
    return index if len(index) <= most else np.random.default_rng(0).permutation(index)[:most]


def _spread(known: Array, colours: Array, lost: Array) -> Array:
    """Colours of the places ``lost`` (M,D), for places (N,D) of known ones."""
    nodes = _some(np.arange(len(lost)), NODES)
    solved = _solve(known, colours, lost[nodes])
    if len(nodes) == len(lost):
        return solved
    distance, near = cKDTree(np.concatenate([known, lost[nodes]])).query(lost, 4)
    weight = 1 / (distance**2 + 1e-12)
    values = np.concatenate([colours, solved])[near]
    return (values * (weight / weight.sum(1, keepdims=True))[..., None]).sum(1).astype(np.float32)


def _solve(known: Array, colours: Array, nodes: Array) -> Array:
    """Colours of all nodes (M,D)."""
    count, all_places = len(nodes), np.concatenate([nodes, known])
    distance, near = cKDTree(all_places).query(nodes, min(NEIGHBOURS + 1, len(all_places)))
    rows = np.repeat(np.arange(count), near.shape[1])
    weight = 1 / (distance.ravel() ** 2 + np.square(np.median(distance[:, -1])) + 1e-20)
    links = sparse.csr_matrix((weight * (near.ravel() != rows), (rows, near.ravel())), (count, len(all_places)))
    inner, outer = links[:, :count], links[:, count:]
    inner = inner.maximum(inner.T)
    anchors = _some(np.arange(len(known)), ANCHORS)
    nearest = anchors[cKDTree(known[anchors]).query(nodes, eps=ROUGHLY)[1]]
    total = np.asarray(inner.sum(1)).ravel() + np.asarray(outer.sum(1)).ravel()
    weak = WEAK * np.maximum(total, 1e-20)
    matrix = sparse.diags(total + weak) - inner
    right = outer @ colours + weak[:, None] * colours[nearest]
    start, jacobi = colours[nearest], sparse.diags(1 / (total + weak))
    solved = [
        cg(matrix, right[:, c], x0=start[:, c], rtol=1e-4, maxiter=500, M=jacobi)[0] for c in range(right.shape[1])
    ]
    return np.clip(np.stack(solved, 1), colours.min(0), colours.max(0)).astype(np.float32)
