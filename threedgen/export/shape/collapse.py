"""Reduce the number of triangles by half-edge collapses that keep a closed surface closed and UVs valid.

A collapse merges one endpoint of an edge into the other; vertices never move. Edges with a small quadric error collapse
first (Garland and Heckbert 1997). An edge collapses only if the link condition holds (Dey et al. 1999), so that every
edge keeps two faces. At a UV seam, a corner keeps the attributes of its side of the seam (Hoppe 1999), and a vertex on
a seam merges only along the seam. The coarse mesh can therefore use the textures of the fine mesh.
"""

import numpy as np
from numba import njit

from threedgen.export.shape.topology import area_vectors, directed_edges, unique_pairs
from threedgen.run.arrays import Array

MIN_TURN_COSINE = 0.2
"""Smallest cosine between the normal of a face before a collapse and its normal after the collapse."""
MIN_ASPECT = 0.02
"""Smallest ratio of double area to longest squared side of a changed face, unless the ratio does not decrease."""
SEAM_WEIGHT = 1.0
"""Weight of distances to UV seams relative to distances to face planes in the quadric error."""
LENGTH_WEIGHT = 1e-7
"""Weight of the squared edge length in the cost. It makes short edges collapse first on flat surfaces."""


def collapse(
    vertices: Array, faces: Array, target: int, corners: Array | None = None, uv: Array | None = None
) -> tuple[Array, Array]:
    """Collapse edges until at most `target` triangles are left, or until no edge may collapse. Deterministic.

    Args:
        vertices: (V, 3).
        faces: (F, 3) indices of `vertices`. Vertices on an edge that does not have exactly two faces are not removed.
        target: maximum number of triangles. Each collapse removes two triangles.
        corners: (F, 3) indices of `uv`, one for each face corner; None: same as `faces`.
        uv: (N, 2) texture coordinates; a collapse must not turn over a face in UV space. None: not checked.

    Returns:
        Remaining faces (F', 3) int32, indices of the input vertices, and their corners (F', 3) int32, indices of `uv`.
    """
    faces = np.ascontiguousarray(faces, np.int64).copy()
    corners = faces.copy() if corners is None else np.ascontiguousarray(corners, np.int64).copy()
    points = _to_unit_box(vertices)
    texture = np.zeros((int(corners.max(initial=0)) + 1, 2)) if uv is None else np.asarray(uv, np.float64)
    error = quadrics(points, faces, corners)
    while len(faces) > target:
        edges, locked = _edges(len(points), faces)
        candidates = _candidates(points, error, edges, needed=(len(faces) - target + 1) // 2)
        count = 0
        for half_edges in candidates:
            stars = _stars(len(points), faces)
            count = _collapse_pass(points, texture, faces, corners, error, half_edges, locked, *stars, target)
            if count:
                break
        if not count:
            break
        alive = faces[:, 0] >= 0
        faces, corners = faces[alive], corners[alive]
    return faces.astype(np.int32), corners.astype(np.int32)


def _to_unit_box(vertices: Array) -> Array:
    """Scale vertices (V, 3) to [-0.5, 0.5] along the longest side, float64: weights then do not depend on the size."""
    points = np.asarray(vertices, np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    return np.ascontiguousarray((points - (low + high) / 2) / max(float((high - low).max()), 1e-30))


def quadrics(points: Array, faces: Array, corners: Array) -> Array:
    """Return the quadric error matrix of each vertex, (V, 4, 4).

    For a homogeneous point p, p^T Q p is the area-weighted sum of squared distances to the adjacent faces' planes. Each
    adjacent UV seam or border adds a plane through its edge, perpendicular to the face. Takes points (V, 3), faces
    (F, 3) and UV indices `corners` (F, 3). An edge with different UV indices in its two faces is a seam.
    """
    normal = area_vectors(points, faces)
    twice = np.linalg.norm(normal, axis=1)
    unit = normal / np.maximum(twice, 1e-30)[:, None]
    total = np.zeros((len(points), 4, 4))
    _add_planes(total, unit, points[faces[:, 0]], twice / 6, faces)
    edges, uv_edges = directed_edges(faces)[0], directed_edges(corners)[0]
    _, index, face_count = unique_pairs(edges)
    # an edge has one UV edge inside a chart, and two or more UV edges at a seam
    _, uv_index, _ = unique_pairs(uv_edges)
    uv_count = np.bincount(unique_pairs(np.stack([index, uv_index], axis=1))[0][:, 0], minlength=len(face_count))
    seam = np.flatnonzero(((uv_count > 1) | (face_count == 1))[index])
    ends, owner = edges[seam], seam % len(faces)
    along = points[ends[:, 1]] - points[ends[:, 0]]
    across = np.cross(along, unit[owner])
    length = np.linalg.norm(across, axis=1)
    wall = across / np.maximum(length, 1e-30)[:, None]
    _add_planes(total, wall, points[ends[:, 0]], SEAM_WEIGHT * length**2 / 2, ends)
    return total


def _add_planes(total: Array, normal: Array, point: Array, weight: Array, vertices: Array) -> None:
    """Add weight (P,) * plane plane^T to the quadrics `total` (V, 4, 4) of each plane's `vertices` (P, k), in place."""
    plane = np.column_stack([normal, -(normal * point).sum(axis=1)])
    square = plane[:, :, None] * plane[:, None, :] * weight[:, None, None]
    for k in range(vertices.shape[1]):
        np.add.at(total, vertices[:, k], square)


def _edges(count: int, faces: Array) -> tuple[Array, Array]:
    """Return edges (E, 2), and a mask (V,) of vertices that have an edge whose number of faces is not two."""
    edges, _, face_count = unique_pairs(directed_edges(faces)[0])
    locked = np.zeros(count, bool)
    locked[edges[face_count != 2].ravel()] = True
    return edges, locked


def _candidates(points: Array, error: Array, edges: Array, needed: int) -> list[Array]:
    """Return half-edges (n, 2), each from the removed to the kept vertex, sorted by cost, in two arrays.

    The first array holds the cheapest half-edges, enough for `needed` collapses; the second array holds all others.
    """
    both = np.concatenate([edges, edges[:, ::-1]])
    goal = np.column_stack([points[both[:, 1]], np.ones(len(both))])
    cost = np.einsum("ni,nij,nj->n", goal, error[both[:, 0]] + error[both[:, 1]], goal, optimize=True)
    cost += LENGTH_WEIGHT * ((points[both[:, 1]] - points[both[:, 0]]) ** 2).sum(axis=1)
    order = np.argsort(cost, kind="stable")
    # a pass skips the neighbourhood of its changes; this limit stops it before it reaches costly edges
    cut = max(2 * needed, len(order) // 6)
    return [both[order[:cut]], both[order[cut:]]]


def _stars(count: int, faces: Array) -> tuple[Array, Array]:
    """Return arrays (first, index): the faces around vertex v are `index[first[v] : first[v + 1]]`."""
    flat = faces.reshape(-1)
    order = np.argsort(flat, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=count))])
    return first, order // 3


@njit(cache=True)
def _collapse_pass(points, uv, faces, corners, error, candidates, locked, first, around, target):
    """Collapse valid half-edges in place and return how many collapsed. Removed faces become -1.

    A half-edge is skipped if an earlier collapse of the same pass changed a face at one of its ends.
    """
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
        # find the faces shared by u and v, the vertices opposite the edge, and the corners at u (old) and v (new)
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
            continue  # u lies inside a chart, v on a seam
        # link condition: u and v have no common neighbours but the two opposite vertices
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
            if iv >= 0:  # the collapse removes this face
                continue
            c = corners[f, i]
            if c != old[0] and c != old[1]:
                fits = False
                break
            goal = new[0] if c == old[0] else new[1]
            p, q = faces[f, (i + 1) % 3], faces[f, (i + 2) % 3]
            if not _keeps_shape(points[u], points[v], points[p], points[q]):
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
        for at in range(first[u], first[u + 1]):  # in a second loop, because the first one indexes with vertices
            f = around[at]
            if _places(faces, f, u, v)[0] >= 0:
                faces[f] = -1
        error[v] += error[u]
        left -= 2
        collapsed += 1
    return collapsed


@njit(cache=True, inline="always")
def _places(faces, f, u, v):
    """Return the positions (0, 1 or 2) of vertices u and v in face f; -1 if the face does not contain the vertex."""
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
def _keeps_shape(old, new, p, q):
    """Return whether face (old, p, q) may become (new, p, q).

    The cosine between both normals must be at least MIN_TURN_COSINE. The new face's `_shape` must be at least
    MIN_ASPECT or at least that of the old face.
    """
    ax, ay, az, before = _normal(old, p, q)
    bx, by, bz, after = _normal(new, p, q)
    if ax * bx + ay * by + az * bz < MIN_TURN_COSINE * before * after:
        return False
    return _shape(new, p, q, after) >= min(MIN_ASPECT, _shape(old, p, q, before))


@njit(cache=True)
def _normal(a, b, c):
    """Return the components of the normal, whose length is twice the face area, and that length."""
    ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    vx, vy, vz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    return x, y, z, np.sqrt(x * x + y * y + z * z)


@njit(cache=True)
def _shape(a, b, c, twice_area):
    """Return double area / longest squared side: 0.87 for an equilateral triangle, about 0 for a sliver."""
    longest = 0.0
    for p, q in ((a, b), (b, c), (c, a)):
        longest = max(longest, (p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2 + (p[2] - q[2]) ** 2)
    return twice_area / longest if longest > 0 else 0.0
