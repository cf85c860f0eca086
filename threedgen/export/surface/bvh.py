"""Cast rays against triangles with a bounding volume hierarchy: nearest hit on a line, ambient occlusion.

The hierarchy is a binary tree of boxes around groups of triangles, stored as an implicit heap: node k has the children
2 k + 1 and 2 k + 2. All leaves have the same depth and hold the same number of triangles; the last triangle is repeated
as padding. Each query writes only its own output, so results do not depend on the number of threads.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from threedgen.run.arrays import Array

LEAF = 4  # maximum number of triangles in a leaf of the tree
BLOCK = 256  # number of consecutive queries that one thread processes at a time
SLACK = 1e-7  # tolerance of barycentric weights, so that no ray passes between two neighbouring triangles


class Bvh(NamedTuple):
    """Bounding volume hierarchy of a mesh: a binary tree of boxes around triangles. The leaves hold the triangles.

    Attributes:
        bounds: (nodes, 6) minimum corner and maximum corner of each node's box. Node 0 is the root, and node k has the
            children 2 k + 1 and 2 k + 2. The last L = (nodes + 1) / 2 nodes are the leaves.
        corners: (P, 3, 3) corners of the P triangles, leaf by leaf: the first leaf has the first P / L triangles, the
            second leaf the next P / L, and so on. P is at least the number of mesh faces, because the last face is
            repeated to fill the leaves.
        face: (P,) index of the mesh face of each triangle.
    """

    bounds: Array  # (nodes, 6) float32, minimum corner and maximum corner of each node's box
    corners: Array  # (P, 3, 3) float32, triangles in leaf order: [triangle, corner, coordinate]
    face: Array  # (P,) int64, index of the mesh face of each triangle


def build(vertices: Array, faces: Array) -> Bvh:
    """Build the bounding volume hierarchy of a mesh with vertices (V, 3) and faces (F, 3).

    Nodes are split along their longest side, at the median of the triangles.
    """
    corners = np.asarray(vertices, np.float32)[faces]
    levels = max(int(np.ceil(np.log2(len(faces) / LEAF))), 0)
    leaves = 2**levels
    each = -(-len(faces) // leaves)
    order = np.minimum(np.arange(leaves * each), len(faces) - 1)[None]
    middle = corners.mean(axis=1)
    for level in range(levels):
        order = order.reshape(2**level, -1)
        places = middle[order]
        longest = np.ptp(places, axis=1).argmax(axis=1)
        along = np.take_along_axis(places, longest[:, None, None], axis=2)[..., 0]
        order = np.take_along_axis(order, along.argsort(axis=1, kind="stable"), axis=1)
    order = order.reshape(-1)
    corners = np.ascontiguousarray(corners[order])
    boxes = corners.reshape(leaves, -1, 3)
    low, high = [boxes.min(axis=1)], [boxes.max(axis=1)]
    while len(low[0]) > 1:
        low.insert(0, np.minimum(low[0][::2], low[0][1::2]))
        high.insert(0, np.maximum(high[0][::2], high[0][1::2]))
    return Bvh(np.concatenate([np.concatenate(low), np.concatenate(high)], axis=1), corners, order.astype(np.int64))


def nearest_along(bvh: Bvh, origins: Array, directions: Array, reach: float) -> tuple[Array, Array, Array]:
    """Find the nearest triangle on each of N lines, in both directions from the origin of the line.

    Triangles whose normal points against the direction are ignored. A line from one side of a thin wall therefore never
    hits the other side of the wall.

    Args:
        bvh: bounding volume hierarchy of the mesh.
        origins: points (N, 3) on the lines.
        directions: unit vectors (N, 3).
        reach: maximum distance between origin and hit, in world units.

    Returns:
        Face index (N,) int64; -1 without a hit.
        Barycentric weights (N, 3) float32 of the hit in the face; 0 without a hit.
        Signed distance (N,) float32 from the origin to the hit, negative behind the origin; inf without a hit.
    """
    place = np.empty(len(origins), np.int64)
    bary, distance = np.empty((len(origins), 3), np.float32), np.empty(len(origins), np.float32)
    o, d = (np.ascontiguousarray(part, np.float64) for part in (origins, directions))
    _trace(bvh.bounds, bvh.corners, o, d, float(reach), place, bary, distance)
    return np.where(place >= 0, bvh.face[place], -1), bary, distance


def ambient_occlusion(bvh: Bvh, points: Array, normals: Array, rays: int, reach: float, lift: float) -> Array:
    """Return the ambient occlusion (N,) of points (N, 3), float32: 1 for a free hemisphere, 0 for a blocked one.

    The value is the cosine-weighted fraction of unoccluded rays. All points use the same directions, rotated about the
    normal by an angle that differs per point.

    Args:
        bvh: bounding volume hierarchy of the mesh.
        normals: unit normals (N, 3), the axes of the hemispheres.
        rays: number of rays per point.
        reach: length of the rays in world units.
        lift: height above the point, along the normal, at which the rays start, in world units.
    """
    k = np.arange(rays) + 0.5
    radius, angle = np.sqrt(k / rays), k * np.pi * (3 - np.sqrt(5))  # evenly on the disc: cosine-weighted above it
    sky = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.sqrt(1 - k / rays)], axis=1)
    out = np.empty(len(points), np.float32)
    o, n = (np.ascontiguousarray(part, np.float64) for part in (points, normals))
    _ambient_occlusion(bvh.bounds, bvh.corners, o, n, sky, float(reach), float(lift), out)
    return out


@njit(cache=True, error_model="numpy", inline="always")
def _enter(bounds, node, ox, oy, oz, ix, iy, iz, best, both_ways):
    # distance from o to the box of a node; inf: missed or beyond `best`. (ix, iy, iz) is 1 / direction
    x0, x1 = (bounds[node, 0] - ox) * ix, (bounds[node, 3] - ox) * ix
    y0, y1 = (bounds[node, 1] - oy) * iy, (bounds[node, 4] - oy) * iy
    z0, z1 = (bounds[node, 2] - oz) * iz, (bounds[node, 5] - oz) * iz
    near = max(min(x0, x1), min(y0, y1), min(z0, z1))
    far = min(max(x0, x1), max(y0, y1), max(z0, z1))
    if near > far or near > best or far < (-best if both_ways else 0.0):
        return np.inf
    return max(near, -far if both_ways else 0.0, 0.0)


@njit(cache=True, error_model="numpy")
def _nearest(bounds, corners, stack, origin, direction, reach, both_ways, any_hit):
    """Return the nearest triangle on a ray, as a tuple (index, distance, v, w).

    The index is a row of `corners`, or -1 without a hit. The hit is at origin + distance * direction; the distance is
    inf without a hit and negative behind the origin. In the triangle, the hit is (1 - v - w) A + v B + w C for the
    corners A, B, C in `corners[index]`.

    `bounds` (nodes, 6) and `corners` (P, 3, 3) are the arrays of a `Bvh`; `stack` (128,) int64 is scratch memory for
    the nodes to visit. `origin` and `direction` are tuples (x, y, z). `reach` is the greatest |distance|. `both_ways`:
    also search behind the origin, and ignore triangles whose normal points against the direction. `any_hit`: return
    the first triangle found instead of the nearest.
    """
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    nodes = bounds.shape[0]
    inner = nodes // 2
    each = corners.shape[0] // (nodes - inner)
    tiny = 1e-30  # avoids a division by zero for a direction parallel to a side of the box
    ix = 1.0 / (dx if abs(dx) > tiny else tiny)
    iy = 1.0 / (dy if abs(dy) > tiny else tiny)
    iz = 1.0 / (dz if abs(dz) > tiny else tiny)
    best, found, at, u1, u2 = reach, -1, np.inf, 0.0, 0.0
    stack[0], depth = 0, 1
    while depth > 0:
        depth -= 1
        node = stack[depth]
        if _enter(bounds, node, ox, oy, oz, ix, iy, iz, best, both_ways) == np.inf:
            continue
        if node < inner:
            one = _enter(bounds, 2 * node + 1, ox, oy, oz, ix, iy, iz, best, both_ways)
            two = _enter(bounds, 2 * node + 2, ox, oy, oz, ix, iy, iz, best, both_ways)
            first = 2 * node + (1 if one <= two else 2)
            if max(one, two) < np.inf:
                stack[depth] = 4 * node + 3 - first  # visit the farther child later
                depth += 1
            if min(one, two) < np.inf:
                stack[depth] = first
                depth += 1
            continue
        for k in range((node - inner) * each, (node - inner + 1) * each):
            t, v, w, along = _meet(corners, k, ox, oy, oz, dx, dy, dz)
            if both_ways:
                nearer = along > 0 and abs(t) < best
            else:
                nearer = 0 < t < best
            if nearer:
                best, found, at, u1, u2 = abs(t), k, t, v, w
                if any_hit:
                    return found, at, u1, u2
    return found, at, u1, u2


@njit(cache=True, error_model="numpy", inline="always")
def _meet(corners, k, ox, oy, oz, dx, dy, dz):
    # Moeller and Trumbore 1997. Returns the line parameter t (inf: none), the barycentric weights of corners 1 and 2,
    # and the dot product of the direction with the unnormalised normal.
    px, py, pz = np.float64(corners[k, 0, 0]), np.float64(corners[k, 0, 1]), np.float64(corners[k, 0, 2])
    ax, ay, az = corners[k, 1, 0] - px, corners[k, 1, 1] - py, corners[k, 1, 2] - pz
    bx, by, bz = corners[k, 2, 0] - px, corners[k, 2, 1] - py, corners[k, 2, 2] - pz
    nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    along = nx * dx + ny * dy + nz * dz
    if along == 0:
        return np.inf, 0.0, 0.0, 0.0
    sx, sy, sz = px - ox, py - oy, pz - oz
    # the line at t is p + v a + w b; c = s x d turns both weights into one product each
    cx, cy, cz = sy * dz - sz * dy, sz * dx - sx * dz, sx * dy - sy * dx
    v = (bx * cx + by * cy + bz * cz) / along
    w = -(ax * cx + ay * cy + az * cz) / along
    if v < -SLACK or w < -SLACK or v + w > 1 + SLACK:
        return np.inf, 0.0, 0.0, 0.0
    return (nx * sx + ny * sy + nz * sz) / along, v, w, along


@njit(cache=True, error_model="numpy", parallel=True)
def _trace(bounds, corners, o, d, reach, place, bary, distance):
    for block in prange((o.shape[0] + BLOCK - 1) // BLOCK):
        stack = np.empty(128, np.int64)
        for n in range(block * BLOCK, min((block + 1) * BLOCK, o.shape[0])):
            origin, direction = (o[n, 0], o[n, 1], o[n, 2]), (d[n, 0], d[n, 1], d[n, 2])
            k, t, v, w = _nearest(bounds, corners, stack, origin, direction, reach, True, False)
            place[n], distance[n] = k, t
            v, w = max(v, 0.0), max(w, 0.0)
            scale = max(v + w, 1.0)
            v, w = v / scale, w / scale
            bary[n, 0], bary[n, 1], bary[n, 2] = (1 - v - w if k >= 0 else 0.0), v, w


@njit(cache=True, error_model="numpy", parallel=True)
def _ambient_occlusion(bounds, corners, points, normals, sky, reach, lift, out):
    golden = 0.6180339887498949
    for block in prange((points.shape[0] + BLOCK - 1) // BLOCK):
        stack = np.empty(128, np.int64)
        for n in range(block * BLOCK, min((block + 1) * BLOCK, points.shape[0])):
            x, y, z = normals[n, 0], normals[n, 1], normals[n, 2]
            # branchless orthonormal basis (Duff et al. 2017)
            sign = 1.0 if z >= 0 else -1.0
            a = -1.0 / (sign + z)
            b = x * y * a
            turn = 2 * np.pi * ((n * golden) % 1.0)
            cosine, sine = np.cos(turn), np.sin(turn)
            origin = (points[n, 0] + lift * x, points[n, 1] + lift * y, points[n, 2] + lift * z)
            free = 0
            for k in range(sky.shape[0]):
                p, q = cosine * sky[k, 0] - sine * sky[k, 1], sine * sky[k, 0] + cosine * sky[k, 1]
                up = sky[k, 2]
                dx = p * (1 + sign * x * x * a) + q * b + up * x
                dy = p * sign * b + q * (sign + y * y * a) + up * y
                dz = -p * sign * x - q * y + up * z
                hit, _, _, _ = _nearest(bounds, corners, stack, origin, (dx, dy, dz), reach, False, True)
                free += 1 if hit < 0 else 0
            out[n] = free / sky.shape[0]
