"""Fewer triangles by edge collapses that keep a closed surface closed, and its texture coordinates in place.

Vertices are never moved, only merged into a neighbour (half-edge collapse), in the order of the quadric error
(Garland and Heckbert 1997). A collapse is made only where the link condition holds (Dey et al. 1999), so edges
keep two faces each. Where vertices are split by UV seams, a corner keeps the attributes of its own side
(Hoppe 1999), and seams are only shortened along themselves: the coarser mesh wears the textures of the finer.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from threedgen.export.shape.topology import area_vectors, directed_edges, unique_pairs
from threedgen.run.arrays import Array

TURN = 0.2
"""Cosine: a face may not turn by more than this in one collapse."""
SLIVER = 0.02
"""Smallest ratio of a new face's double area to its longest squared side; below, it has to grow better."""
SEAM = 1.0
"""Weight of a seam's own shape beside that of the surface."""
SHORT = 1e-7
"""Weight of an edge's squared length, so that among flat neighbours the near one is taken."""


def collapse(
    vertices: Array, faces: Array, target: int, corners: Array | None = None, uv: Array | None = None
) -> tuple[Array, Array]:
    """Faces (F', 3) and corners (F', 3) of a mesh with at most `target` triangles, or as few as it allows.

    vertices (V, 3); faces (F, 3), closed and manifold (the surroundings of other edges stay as they are).
    corners (F, 3): which row of uv (N, 2) each corner of a face wears; without them the faces themselves.
    Removes two triangles at a time. Same input, same output.
    """
    faces = np.ascontiguousarray(faces, np.int64).copy()
    corners = faces.copy() if corners is None else np.ascontiguousarray(corners, np.int64).copy()
    points = _unit(vertices)
    flat = np.zeros((int(corners.max(initial=0)) + 1, 2)) if uv is None else np.asarray(uv, np.float64)
    error = quadrics(points, faces, corners)
    while len(faces) > target:
        edges, locked = _edges(len(points), faces)
        candidates = _candidates(points, error, edges, needed=(len(faces) - target + 1) // 2)
        count = 0
        for few in candidates:
            stars = _stars(len(points), faces)
            count = _collapse_some(points, flat, faces, corners, error, few, locked, *stars, target)
            if count:
                break
        if not count:
            break
        alive = faces[:, 0] >= 0
        faces, corners = faces[alive], corners[alive]
    return faces.astype(np.int32), corners.astype(np.int32)


def _unit(vertices: Array) -> Array:
    """The vertices in a box of size 1 about the origin, float64, so that weights mean the same for all meshes."""
    points = np.asarray(vertices, np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    return np.ascontiguousarray((points - (low + high) / 2) / max(float((high - low).max()), 1e-30))


def quadrics(points: Array, faces: Array, corners: Array) -> Array:
    """For each vertex (V, 4, 4) the squared distances to the planes of its faces, by area, and to its seams."""
    normal = area_vectors(points, faces)
    twice = np.linalg.norm(normal, axis=1)
    unit = normal / np.maximum(twice, 1e-30)[:, None]
    total = np.zeros((len(points), 4, 4))
    _add_planes(total, unit, points[faces[:, 0]], twice / 6, faces)
    lower, worn = directed_edges(faces)[0], directed_edges(corners)[0]
    _, which, users = unique_pairs(lower)
    # an edge that all its faces dress alike is worn once; at a seam (or a border) twice or more
    _, dress, _ = unique_pairs(worn)
    dresses = np.bincount(unique_pairs(np.stack([which, dress], axis=1))[0][:, 0], minlength=len(users))
    seam = np.flatnonzero(((dresses > 1) | (users == 1))[which])
    ends, owner = lower[seam], seam % len(faces)
    along = points[ends[:, 1]] - points[ends[:, 0]]
    across = np.cross(along, unit[owner])
    length = np.linalg.norm(across, axis=1)
    wall = across / np.maximum(length, 1e-30)[:, None]
    _add_planes(total, wall, points[ends[:, 0]], SEAM * length**2 / 2, ends)
    return total


def _add_planes(total: Array, normal: Array, point: Array, weight: Array, users: Array) -> None:
    """Adds weight * (plane plane^T) to the quadric of every user of a plane."""
    plane = np.column_stack([normal, -(normal * point).sum(axis=1)])
    square = plane[:, :, None] * plane[:, None, :] * weight[:, None, None]
    for k in range(users.shape[1]):
        np.add.at(total, users[:, k], square)


def _edges(count: int, faces: Array) -> tuple[Array, Array]:
    """The edges (E, 2), and which vertices (V,) may not move because an edge of theirs lacks two faces."""
    edges, _, users = unique_pairs(directed_edges(faces)[0])
    locked = np.zeros(count, bool)
    locked[edges[users != 2].ravel()] = True
    return edges, locked


def _candidates(points: Array, error: Array, edges: Array, needed: int) -> list[Array]:
    """Half-edges (n, 2), from -> to, the cheapest first: those that may be needed now, then all the others."""
    both = np.concatenate([edges, edges[:, ::-1]])
    goal = np.column_stack([points[both[:, 1]], np.ones(len(both))])
    cost = np.einsum("ni,nij,nj->n", goal, error[both[:, 0]] + error[both[:, 1]], goal, optimize=True)
    cost += SHORT * ((points[both[:, 1]] - points[both[:, 0]]) ** 2).sum(axis=1)
    order = np.argsort(cost, kind="stable")
    # a pass takes neighbours of what it changed no more, so it must not run far into the dear ones
    cut = max(2 * needed, len(order) // 6)
    return [both[order[:cut]], both[order[cut:]]]


def _stars(count: int, faces: Array) -> tuple[Array, Array]:
    """The faces around each vertex: number them[first[v]:first[v + 1]]."""
    flat = faces.reshape(-1)
    order = np.argsort(flat, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=count))])
    return first, order // 3


@njit(cache=True)
def _collapse_some(points, uv, faces, corners, error, candidates, locked, first, around, target):
    """Collapses what it may, marks dead faces by -1; returns how many. Stars that were changed are left alone."""
    touched = np.zeros(len(points), np.bool_)
    mark = np.full(len(points), -1, np.int64)
    left = len(faces)
    collapsed = 0
    for number in range(len(candidates)):
        if left <= target:
            break
        u, v = candidates[number, 0], candidates[number, 1]
        if touched[u] or touched[v] or locked[u]:
            continue
        # the faces that u and v share, the vertices across, and what the corners at u become at v
        shared = 0
        across = np.full(2, -1, np.int64)
        old = np.full(2, -1, np.int64)
        new = np.full(2, -1, np.int64)
        for at in range(first[u], first[u + 1]):
            f = around[at]
            iu, iv = _places(faces, f, u, v)
            if iv < 0:
                continue
            if shared < 2:
                across[shared] = faces[f, 3 - iu - iv]
                old[shared], new[shared] = corners[f, iu], corners[f, iv]
            shared += 1
        if shared != 2 or across[0] == across[1]:
            continue
        if old[0] == old[1] and new[0] != new[1]:
            continue  # u lies inside a chart, v on both sides of a seam
        # link condition: no vertex but the two across is a neighbour of both
        stamp = 2 * number
        for at in range(first[u], first[u + 1]):
            for k in range(3):
                mark[faces[around[at], k]] = stamp
        common = 0
        for at in range(first[v], first[v + 1]):
            for k in range(3):
                w = faces[around[at], k]
                if w != u and w != v and mark[w] == stamp:
                    common += 1
                    mark[w] = stamp + 1
        if common != 2 or first[across[0] + 1] - first[across[0]] < 4 or first[across[1] + 1] - first[across[1]] < 4:
            continue
        fits = True
        for at in range(first[u], first[u + 1]):
            f = around[at]
            i, iv = _places(faces, f, u, v)
            if iv >= 0:  # it goes away
                continue
            c = corners[f, i]
            if c != old[0] and c != old[1]:
                fits = False
                break
            goal = new[0] if c == old[0] else new[1]
            p, q = faces[f, (i + 1) % 3], faces[f, (i + 2) % 3]
            if not _may_turn(points[u], points[v], points[p], points[q]):
                fits = False
                break
            s, t = corners[f, (i + 1) % 3], corners[f, (i + 2) % 3]
            before = _twice_area(uv[c], uv[s], uv[t])
            after = _twice_area(uv[goal], uv[s], uv[t])
            if before * after <= 0 and before != 0:
                fits = False
                break
        if not fits:
            continue
        for at in range(first[u], first[u + 1]):
            f = around[at]
            for k in range(3):
                touched[faces[f, k]] = True
            i, iv = _places(faces, f, u, v)
            if iv >= 0:
                continue
            faces[f, i] = v
            corners[f, i] = new[0] if corners[f, i] == old[0] else new[1]
        for at in range(first[u], first[u + 1]):  # after all were looked at: -1 is no vertex
            f = around[at]
            if _places(faces, f, u, v)[0] >= 0:
                faces[f] = -1
        error[v] += error[u]
        left -= 2
        collapsed += 1
    return collapsed


@njit(cache=True, inline="always")
def _places(faces, f, u, v):
    """Which corners of a face u and v are, -1 for none."""
    iu = iv = -1
    for k in range(3):
        if faces[f, k] == u:
            iu = k
        elif faces[f, k] == v:
            iv = k
    return iu, iv


@njit(cache=True, inline="always")
def _twice_area(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


@njit(cache=True)
def _may_turn(old, new, p, q):
    """May the face (old, p, q) become (new, p, q): still looking the same way, and no sliver unless it was one?"""
    ax, ay, az, before = _normal(old, p, q)
    bx, by, bz, after = _normal(new, p, q)
    if ax * bx + ay * by + az * bz < TURN * before * after:
        return False
    return _shape(new, p, q, after) >= min(SLIVER, _shape(old, p, q, before))


@njit(cache=True)
def _normal(a, b, c):
    """The vector along a face's normal whose length is twice the area, and that length."""
    ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    vx, vy, vz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    return x, y, z, np.sqrt(x * x + y * y + z * z)


@njit(cache=True)
def _shape(a, b, c, twice_area):
    """Twice the area over the longest squared side: 0.87 for three equal sides, 0 for a sliver."""
    longest = 0.0
    for p, q in ((a, b), (b, c), (c, a)):
        longest = max(longest, (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2 + (p[2] - q[2]) ** 2)
    return twice_area / longest if longest > 0 else 0.0
