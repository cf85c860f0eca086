"""CPU rasteriser (numba). It returns the face index, the barycentric coordinates and the depth of each pixel.

One kernel serves cameras and texture space. Its vertices are P = (x w, y w, w) with (x, y) in pixels. w is the depth
along the viewing axis, or 1 for orthographic cameras and texture space. Corners are rounded to 1/256 pixel and edges
are tested in integers with a fill rule, so triangles that share an edge leave no gap and never cover the same pixel.

Barycentric coordinates and depth use the corners before rounding. For a pixel centre (a, b) and a corner P, let P' be
the first two coordinates of P - (a w, b w, w). The weight of a corner is proportional to the cross product of P' of the
other two corners. It is perspective-correct without a division by w (Olano and Greer 1997).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit, prange

from threedgen.config.errors import ConfigError
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.run.arrays import Array

Pair = tuple[int, int]
Size = int | Pair
NEAR = 1e-2  # depth of the clipping plane of cameras, in world units; faces that cross it are cut exactly there


@dataclass(frozen=True)
class Buffers:
    """Rasteriser output at the pixel centres of V views: face index, barycentric coordinates and depth z.

    The arrays are `face` (V, H, W), -1 for background, `bary` (V, H, W, 3), perspective-correct, and `z` (V, H, W), the
    depth along the viewing axis in world units, inf for background. `rasterise_uv` returns them without the V axis.
    """

    face: Array  # (V, H, W) int32 face index, -1 for background
    bary: Array  # (V, H, W, 3) float32 perspective-correct weights of the face's corners, sum 1; 0 for background
    z: Array  # (V, H, W) float32 depth along the viewing axis in world units; inf for background

    @property
    def mask(self) -> Array:
        return self.face >= 0


def rasterise(vertices: Array, faces: Array, c2w: Array, fov: Array | float, size: Size) -> Buffers:
    """Rasterise a mesh seen by V perspective cameras with square pixels.

    Returns for each pixel the index `face` (V, H, W) of the visible face, the weights `bary` (V, H, W, 3) of its
    corners, and the depth `z` (V, H, W) along the viewing axis in world units. Where no face is visible, `face` is -1,
    `bary` 0 and `z` inf.

    Args:
        vertices: (N, 3), in world units.
        faces: (F, 3) vertex indices.
        c2w: (V, 4, 4) camera-to-world poses with OpenGL axes.
        fov: vertical field of view in radians, scalar or (V,).
        size: image side in pixels, or (height, width).

    Raises:
        ConfigError: if shapes are wrong, coordinates are not finite, or face indices are out of range.
    """
    height, width = _pair(size)
    projection = Projection.perspective(torch.from_numpy(np.full(len(c2w), fov, np.float64)), height, width)
    return rasterise_views(vertices, faces, Cameras(torch.from_numpy(c2w), projection, height, width))


def rasterise_views(vertices: Array, faces: Array, cameras: Cameras, behind: Array | None = None) -> Buffers:
    """Rasterise a mesh with vertices (N, 3) in world units and faces (F, 3), seen by V cameras.

    Returns for each pixel the index `face` of the visible face, the weights `bary` of its corners and the depth `z`.
    If faces are equally distant, the one with the lowest index is visible. The cameras are perspective or orthographic,
    on the CPU. Faces are clipped at the depth 0.01 (`NEAR`). `behind` (V, H, W) are float32 depths along the viewing
    axis, in world units: only surfaces with a larger depth are visible; None: no limit. Raises ConfigError if shapes
    are wrong, coordinates are not finite, or face indices are out of range.
    """
    vertices, faces = validate_mesh(vertices, faces, 3)
    projection = cameras.projection

    def projected() -> Iterator[tuple[Array, Array]]:
        for pose, k in zip(cameras.c2w.double().numpy(), projection.K.double().numpy(), strict=True):
            local = (vertices - pose[:3, 3]) @ pose[:3, :3] * (1, -1, -1)
            depth = np.ascontiguousarray(local[:, 2])
            if projection.parallel:
                local[:, 2] = 1
            yield local @ k.T, depth

    return _run(projected(), len(cameras), faces, NEAR, (cameras.height, cameras.width), behind)


def rasterise_uv(uv: Array, faces: Array, size: Size) -> Buffers:
    """Rasterise a mesh in texture space, with H x W texels.

    Returns for each texel the index `face` (H, W) of the face that covers it, -1 for none, and the weights `bary`
    (H, W, 3) of the face's corners; `z` (H, W) is 1, or inf for none. Of overlapping faces, the first one is returned.

    Args:
        uv: (N, 2) in [0, 1] per vertex. v points up, and row 0 is the top.
        faces: (F, 3) vertex indices.
        size: edge in texels, or (height, width).

    Raises:
        ConfigError: if shapes are wrong, coordinates are not finite, or face indices are out of range.
    """
    height, width = _pair(size)
    uv, faces = validate_mesh(uv, faces, 2)
    plane = np.stack([uv[:, 0] * width, (1 - uv[:, 1]) * height, np.ones(len(uv))], axis=1)
    result = _run([(plane, plane[:, 2].copy())], 1, faces, 0.0, (height, width))
    return Buffers(result.face[0], result.bary[0], result.z[0])


def _run(
    views: Iterable[tuple[Array, Array]], count: int, faces: Array, near: float, size: Pair, behind: Array | None = None
) -> Buffers:
    # each view consists of the vertices P (N, 3), see the module docstring, and their depths (N,)
    shape = (count, *size)
    face, bary = np.full(shape, -1, np.int32), np.zeros((*shape, 3), np.float32)
    z = np.full(shape, np.inf, np.float32)
    behind = np.full(shape, -np.inf, np.float32) if behind is None else behind
    for k, (plane, depth) in enumerate(views):
        triangles, bounds = np.zeros((len(faces), 2, 3, 2), np.int64), np.zeros((len(faces), 2, 4), np.int64)
        _prepare(plane, depth, faces, near, *size, triangles, bounds)
        _fill(plane, depth, faces, triangles, bounds, behind[k], face[k], bary[k], z[k])
    return Buffers(face, bary, z)


def _pair(size: Size) -> Pair:
    return (size, size) if isinstance(size, int) else size


def interpolate(attribute: Array, faces: Array, buffers: Buffers) -> Array:
    """Interpolate a vertex attribute (N, C) of a mesh with faces (F, 3) at the pixels of V rasterised views.

    `buffers` is the result of rasterising the mesh. Returns (V, H, W, C) float32, 0 in the background. For buffers of
    `rasterise_uv`, it returns (H, W, C).
    """
    out = np.zeros((*buffers.face.shape, attribute.shape[-1]), np.float32)
    mask = buffers.mask
    out[mask] = (attribute[faces[buffers.face[mask]]] * buffers.bary[mask][..., None]).sum(axis=-2)
    return out


def unit(vectors: Array) -> Array:
    """Normalise vectors (..., C) to length 1; zero vectors stay zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def box_downsample(images: Array, factor: int) -> Array:
    """Downsample images (V, H * factor, W * factor, C) to (V, H, W, C) by the mean of factor x factor pixels."""
    views, height, width, channels = images.shape
    return images.reshape(views, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))


def validate_mesh(points: Array, faces: Array, columns: int) -> tuple[Array, Array]:
    """Check a mesh: return its points (N, columns) as float64 and its faces (F, 3) as int64.

    Faces are point indices. `columns` is the expected number of coordinates of a point.

    Raises ConfigError if shapes are wrong, coordinates are not finite, or face indices are out of range.
    """
    points, faces = np.asarray(points, np.float64), np.ascontiguousarray(faces, np.int64)
    if points.ndim != 2 or points.shape[1] != columns or faces.ndim != 2 or faces.shape[1] != 3:
        raise ConfigError(f"Mesh shapes are {points.shape}, {faces.shape}. Use points (N, {columns}) and faces (F, 3).")
    if not np.isfinite(points).all():
        raise ConfigError("Mesh coordinates are not finite. Remove NaN and infinity.")
    if faces.size and (faces.min() < 0 or faces.max() >= len(points)):
        raise ConfigError(f"Face indices are {faces.min()} to {faces.max()}. Use 0 to {len(points) - 1}.")
    return points, faces


# --- kernels: one thread rasterises all faces, in order, in a band of rows, so results do not depend on the threads

SUBPIXELS = 256  # subpixels per pixel along each axis
MAX_PIXEL = 2.0**22  # limit of corner coordinates, so that products of two differences fit into 63 bits
BAND = 32  # rows per band


@njit(cache=True, error_model="numpy", inline="always")
def _snap(value):
    return np.int64(np.floor(min(max(value, -MAX_PIXEL), MAX_PIXEL) * SUBPIXELS + 0.5))


@njit(cache=True, error_model="numpy", parallel=True)
def _prepare(plane, depth, faces, near, height, width, triangles, bounds):
    # Clip each face at depth `near` into at most two triangles of positive area, with corners in integer subpixels.
    # Writes `triangles` (F, 2, 3, 2) and their pixel ranges `bounds` (F, 2, 4): first and end row, then column.
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
    # Twice the signed area of (a, b, p), minus 1 if the fill rule excludes points p on the edge (a, b). The triangles
    # beside an edge have it in opposite directions. The rule excludes exactly one direction.
    dx, dy = bx - ax, by - ay
    included = dy < 0 or (dy == 0 and dx > 0)
    return dx * (py - ay) - dy * (px - ax) - (0 if included else 1)


@njit(cache=True, error_model="numpy", parallel=True)
def _fill(plane, depth, faces, triangles, bounds, behind, face, bary, z):
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
                            _shade(plane, depth, faces[f], f, i, j, behind, face, bary, z)
                        e0 -= (by - ay) * SUBPIXELS
                        e1 -= (cy - by) * SUBPIXELS
                        e2 -= (ay - cy) * SUBPIXELS


@njit(cache=True, error_model="numpy", inline="always")
def _shade(plane, depth, corners, f, i, j, behind, face, bary, z):
    # write pixel (column i, row j) if the depth of face f is larger than `behind` and smaller than `z` there
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
    if behind[j, i] < distance < z[j, i]:
        z[j, i], face[j, i] = distance, f
        bary[j, i, 0], bary[j, i, 1], bary[j, i, 2] = e0, e1, e2
