"""Numba kernels of `threedgen.geometry.raster`, whose docstring defines the vertices P and the barycentric weights.

Edges are tested in 64-bit integer subpixels, without rounding errors. One thread fills each band of rows with all faces
in order, so that the result does not depend on the number of threads.
"""

import numpy as np
from numba import njit, prange

SUBPIXELS = 256
MAX_PIXEL = 2.0**22
"""Corner coordinates are clamped to this number of pixels, so that products of two differences fit into 63 bits."""
BAND = 32
"""Number of image rows that one thread task fills."""


@njit(cache=True, error_model="numpy", inline="always")
def _snap(value):
    """Round a pixel coordinate to integer subpixels."""
    return np.int64(np.floor(min(max(value, -MAX_PIXEL), MAX_PIXEL) * SUBPIXELS + 0.5))


@njit(cache=True, error_model="numpy", parallel=True)
def prepare(plane, depth, faces, near, height, width, triangles, bounds):
    """Clip each face at depth `near` into at most two positively oriented triangles with corners in integer subpixels.

    Writes `triangles` (F, 2, 3, 2) and their pixel ranges `bounds` (F, 2, 4): first row, end row, first column, end
    column, where the ends are excluded.
    """
    half = SUBPIXELS // 2
    for f in prange(faces.shape[0]):
        corner = np.empty((4, 2), np.int64)
        count = 0
        for k in range(3):
            a, b = faces[f, k], faces[f, (k + 1) % 3]
            if depth[a] >= near:
                corner[count, 0], corner[count, 1] = _snap(plane[a, 0] / plane[a, 2]), _snap(plane[a, 1] / plane[a, 2])
                count += 1
            if (depth[a] >= near) != (depth[b] >= near):
                # always interpolate from inside to outside, so that adjacent faces clip their edge identically
                i, o = (a, b) if depth[a] >= near else (b, a)
                t = (depth[i] - near) / (depth[i] - depth[o])
                w = plane[i, 2] + t * (plane[o, 2] - plane[i, 2])
                for axis in range(2):
                    cut = plane[i, axis] + t * (plane[o, axis] - plane[i, axis])
                    corner[count, axis] = _snap(cut / w)
                count += 1
        for k in range(count - 2):
            ax, ay = corner[0, 0], corner[0, 1]
            bx, by, cx, cy = corner[k + 1, 0], corner[k + 1, 1], corner[k + 2, 0], corner[k + 2, 1]
            area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            if area == 0:
                continue
            if area < 0:
                bx, by, cx, cy = cx, cy, bx, by
            triangles[f, k, 0, 0], triangles[f, k, 0, 1] = ax, ay
            triangles[f, k, 1, 0], triangles[f, k, 1, 1] = bx, by
            triangles[f, k, 2, 0], triangles[f, k, 2, 1] = cx, cy
            # from the first pixel centre >= the smallest corner to the last one <= the largest
            bounds[f, k, 0] = max(-((half - min(ay, by, cy)) // SUBPIXELS), 0)
            bounds[f, k, 1] = min((max(ay, by, cy) - half) // SUBPIXELS + 1, height)
            bounds[f, k, 2] = max(-((half - min(ax, bx, cx)) // SUBPIXELS), 0)
            bounds[f, k, 3] = min((max(ax, bx, cx) - half) // SUBPIXELS + 1, width)


@njit(cache=True, error_model="numpy", inline="always")
def _edge(px, py, ax, ay, bx, by):
    """Return twice the signed area of (a, b, p), minus 1 if the fill rule excludes points p on the edge (a, b).

    Of the two directions of an edge the rule excludes exactly one, as if all pixel centres were moved slightly right
    and much less down.
    """
    dx, dy = bx - ax, by - ay
    included = dy < 0 or (dy == 0 and dx > 0)
    return dx * (py - ay) - dy * (px - ax) - (0 if included else 1)


@njit(cache=True, error_model="numpy", parallel=True)
def fill(plane, depth, faces, triangles, bounds, face, bary, z):
    """Write face index, corner weights and depth of all pixels that the triangles from `prepare` cover."""
    height = face.shape[0]
    half = SUBPIXELS // 2
    for band in prange((height + BAND - 1) // BAND):
        top, bottom = band * BAND, min((band + 1) * BAND, height)
        for f in range(faces.shape[0]):
            for k in range(2):
                first, last = max(bounds[f, k, 0], top), min(bounds[f, k, 1], bottom)
                if first >= last or bounds[f, k, 2] >= bounds[f, k, 3]:
                    continue
                ax, ay = triangles[f, k, 0, 0], triangles[f, k, 0, 1]
                bx, by = triangles[f, k, 1, 0], triangles[f, k, 1, 1]
                cx, cy = triangles[f, k, 2, 0], triangles[f, k, 2, 1]
                for j in range(first, last):
                    y = j * SUBPIXELS + half
                    x = bounds[f, k, 2] * SUBPIXELS + half
                    e0, e1, e2 = _edge(x, y, ax, ay, bx, by), _edge(x, y, bx, by, cx, cy), _edge(x, y, cx, cy, ax, ay)
                    for i in range(bounds[f, k, 2], bounds[f, k, 3]):
                        if e0 >= 0 and e1 >= 0 and e2 >= 0:
                            _shade(plane, depth, faces[f], f, i, j, face, bary, z)
                        e0 -= (by - ay) * SUBPIXELS
                        e1 -= (cy - by) * SUBPIXELS
                        e2 -= (ay - cy) * SUBPIXELS


@njit(cache=True, error_model="numpy", inline="always")
def _shade(plane, depth, corners, f, i, j, face, bary, z):
    """Write face index, weights and depth of pixel (column i, row j) if face f is nearer than the stored depth."""
    x, y = i + 0.5, j + 0.5
    a, b, c = corners[0], corners[1], corners[2]
    ax, ay = plane[a, 0] - x * plane[a, 2], plane[a, 1] - y * plane[a, 2]
    bx, by = plane[b, 0] - x * plane[b, 2], plane[b, 1] - y * plane[b, 2]
    cx, cy = plane[c, 0] - x * plane[c, 2], plane[c, 1] - y * plane[c, 2]
    e0, e1, e2 = bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx
    side = 1.0 if e0 + e1 + e2 >= 0 else -1.0
    # after snapping, a covered centre can be slightly outside the face: clamp its weights
    e0, e1, e2 = max(side * e0, 0.0), max(side * e1, 0.0), max(side * e2, 0.0)
    total = e0 + e1 + e2
    if not total > 0:
        e0, e1, e2, total = 1.0, 1.0, 1.0, 3.0
    e0, e1, e2 = e0 / total, e1 / total, e2 / total
    distance = np.float32(e0 * depth[a] + e1 * depth[b] + e2 * depth[c])
    if distance < z[j, i]:
        z[j, i], face[j, i] = distance, f
        bary[j, i, 0], bary[j, i, 1], bary[j, i, 2] = e0, e1, e2
