"""The rasteriser's loops (numba); what P, z and the barycentrics are is told in `threedgen.geometry.raster`.

Edges are tested in whole subpixels of 64 bits, so without any rounding. Each band of rows has one writer, which goes
through all faces in order: the result does not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

SUBPIXELS = 256
FARTHEST = 2.0**22
"""Pixels from the origin at which corners are held: so all products of two differences fit into 63 bits."""
BAND = 32
"""Rows of a picture that one thread fills."""


@njit(cache=True, error_model="numpy", inline="always")
def _snap(value):
    """Pixels to whole subpixels."""
    return np.int64(np.floor(min(max(value, -FARTHEST), FARTHEST) * SUBPIXELS + 0.5))


@njit(cache=True, error_model="numpy", parallel=True)
def prepare(plane, depth, faces, near, height, width, part, bounds):
    """Cuts each face where its depth is `near` into at most two triangles `part` (F, 2, 3, 2), snapped and turned so
    that their inside is positive, with the rows and columns of pixels they may cover, `bounds` (F, 2, 4), the last
    excluded.
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
                # from the inner to the outer end, so that the neighbour cuts its edge at the same place
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
            part[f, k, 0, 0], part[f, k, 0, 1] = ax, ay
            part[f, k, 1, 0], part[f, k, 1, 1] = bx, by
            part[f, k, 2, 0], part[f, k, 2, 1] = cx, cy
            # the first pixel whose centre is not before the least corner, the last whose centre is not behind
            bounds[f, k, 0] = max(-((half - min(ay, by, cy)) // SUBPIXELS), 0)
            bounds[f, k, 1] = min((max(ay, by, cy) - half) // SUBPIXELS + 1, height)
            bounds[f, k, 2] = max(-((half - min(ax, bx, cx)) // SUBPIXELS), 0)
            bounds[f, k, 3] = min((max(ax, bx, cx) - half) // SUBPIXELS + 1, width)


@njit(cache=True, error_model="numpy", inline="always")
def _edge(px, py, ax, ay, bx, by):
    """Twice the area at the left of a -> b as whole number; less by one on an edge that leaves its points away.

    Of the two directions of an edge exactly one leaves them away; it is as if each centre lay a little further
    right and, much less, further down.
    """
    dx, dy = bx - ax, by - ay
    kept = dy < 0 or (dy == 0 and dx > 0)
    return dx * (py - ay) - dy * (px - ax) - (0 if kept else 1)


@njit(cache=True, error_model="numpy", parallel=True)
def fill(plane, depth, faces, part, bounds, face, bary, z):
    height = face.shape[0]
    half = SUBPIXELS // 2
    for band in prange((height + BAND - 1) // BAND):
        top, bottom = band * BAND, min((band + 1) * BAND, height)
        for f in range(faces.shape[0]):
            for k in range(2):
                first, last = max(bounds[f, k, 0], top), min(bounds[f, k, 1], bottom)
                if first >= last or bounds[f, k, 2] >= bounds[f, k, 3]:
                    continue
                ax, ay = part[f, k, 0, 0], part[f, k, 0, 1]
                bx, by = part[f, k, 1, 0], part[f, k, 1, 1]
                cx, cy = part[f, k, 2, 0], part[f, k, 2, 1]
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
    """Pixel (i, j), covered by face f, if nothing before it is as near."""
    x, y = i + 0.5, j + 0.5
    a, b, c = corners[0], corners[1], corners[2]
    ax, ay = plane[a, 0] - x * plane[a, 2], plane[a, 1] - y * plane[a, 2]
    bx, by = plane[b, 0] - x * plane[b, 2], plane[b, 1] - y * plane[b, 2]
    cx, cy = plane[c, 0] - x * plane[c, 2], plane[c, 1] - y * plane[c, 2]
    e0, e1, e2 = bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx
    side = 1.0 if e0 + e1 + e2 >= 0 else -1.0
    # snapping lets a centre in that is a little outside: held at the border, it stays a mean of the corners
    e0, e1, e2 = max(side * e0, 0.0), max(side * e1, 0.0), max(side * e2, 0.0)
    total = e0 + e1 + e2
    if not total > 0:
        e0, e1, e2, total = 1.0, 1.0, 1.0, 3.0
    e0, e1, e2 = e0 / total, e1 / total, e2 / total
    far = np.float32(e0 * depth[a] + e1 * depth[b] + e2 * depth[c])
    if far < z[j, i]:
        z[j, i], face[j, i] = far, f
        bary[j, i, 0], bary[j, i, 1], bary[j, i, 2] = e0, e1, e2
