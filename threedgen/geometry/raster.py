"""Triangles to pixels on the CPU (numba): which face a pixel sees, where on the face, and how far away.

One kernel serves cameras and texture space. A vertex comes as P = (x w, y w, w), with (x, y) its place in pixels
and w its depth along the viewing axis, or 1 for parallel rays and in texture space. Corners are snapped to 1/256
pixel, and edges are tested in whole numbers with a rule for pixel centres that lie on them, so two triangles with a
common edge leave no gap and never claim the same pixel. Barycentrics and depth come from the corners before snapping:
with P_i' the corners moved so that the pixel is the origin, they are proportional to the areas P_j' x P_k' in the
plane, which is perspective-correct and needs no division by the depth of a corner (Olano and Greer 1997).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.geometry.raster_kernels import fill, prepare
from threedgen.run.arrays import Array

if TYPE_CHECKING:
    from threedgen.geometry.cameras import Cameras

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Buffers:
    """What each pixel centre sees; V is left out in texture space.

    face (V, H, W) int32, -1 for the background; bary (V, H, W, 3) float32, perspective-correct weights of the
    face's corners, in [0, 1] with sum 1, 0 on the background; z (V, H, W) float32 along the viewing axis, in world
    units, inf on the background.
    """

    face: Array
    bary: Array
    z: Array

    @property
    def mask(self) -> Array:
        """(V, H, W) bool: where there is a face."""
        return self.face >= 0


def rasterise(vertices: Array, faces: Array, c2w: Array, fov: Array | float, size: Size, near: float = 1e-2) -> Buffers:
    """What V cameras see of a mesh, through the centres of their pixels.

    vertices (N, 3) world units; faces (F, 3); c2w (V, 4, 4) as in `threedgen.geometry.cameras`; fov vertical, radians,
    one or (V,); size: pixels of an edge, or (height, width). A face that crosses the plane at distance `near` is cut
    there, exactly, and what lies closer or behind is not seen. Of faces that are equally far the first is seen. Raises
    ConfigError for faces of missing vertices, numbers that are not finite and wrong shapes.
    """
    height, width = _pair(size)
    focal = 0.5 * height / np.tan(0.5 * np.broadcast_to(np.asarray(fov, np.float64), (len(c2w),)))
    K = focal[:, None, None] * np.diag([1.0, 1.0, 0.0])
    K[:, :, 2] += width / 2, height / 2, 1
    return _rasterise(vertices, faces, c2w, K, (height, width), near)


def rasterise_views(vertices: Array, faces: Array, at: Cameras, near: float = 1e-2) -> Buffers:
    """`rasterise` for any cameras, of parallel rays too."""
    matrices = at.c2w.numpy(), at.projection.K.numpy()
    return _rasterise(vertices, faces, *matrices, (at.height, at.width), near, at.projection.parallel)


def _rasterise(
    vertices: Array, faces: Array, c2w: Array, K: Array, size: Size, near: float, parallel: bool = False
) -> Buffers:
    """What cameras (V, 4, 4) with K (V, 3, 3) see; see `geometry.cameras.Projection`."""
    poses, K = np.asarray(c2w, np.float64), np.asarray(K, np.float64)
    vertices, faces = checked(vertices, faces, 3)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or near <= 0:
        raise ConfigError(f"rasterising takes c2w (V, 4, 4) and near > 0 (got {poses.shape} and {near})")
    result = _empty(len(poses), *_pair(size))
    for view, (pose, k) in enumerate(zip(poses, K, strict=True)):
        local = (vertices - pose[:3, 3]) @ pose[:3, :3] * (1, -1, -1)
        depth = np.ascontiguousarray(local[:, 2])
        if parallel:
            local[:, 2] = 1
        _view(local @ k.T, depth, faces, near, result, view)
    return result


def rasterise_uv(uv: Array, faces: Array | None, size: Size) -> Buffers:
    """Which face owns each texel of a texture of `size`, by its centre; (H, W) arrays, z 1.

    uv (N, 2) for faces (F, 3), or (F, 3, 2) for each corner and None. u runs to the right and v UP: (0, 0) is the
    lower left corner of the picture, whose row 0 is the upper one. Where charts overlap, the first face is taken.
    Raises ConfigError as `rasterise` does.
    """
    height, width = _pair(size)
    if faces is None:
        faces = np.arange(uv.shape[0] * 3).reshape(-1, 3)
    uv, faces = checked(np.asarray(uv).reshape(-1, 2), faces, 2)
    result = _empty(1, height, width)
    plane = np.stack([uv[:, 0] * width, (1 - uv[:, 1]) * height, np.ones(len(uv))], axis=1)
    _view(plane, plane[:, 2].copy(), faces, 0.0, result, 0)
    return Buffers(result.face[0], result.bary[0], result.z[0])


def interpolate(attribute: Array, faces: Array | None, buffers: Buffers) -> Array:
    """Values of an attribute in the pixels, (..., C) float32, 0 on the background.

    attribute (N, C) of vertices, or (F, 3, C) of corners with faces None. Directions do not stay unit: `unit`.
    """
    out = np.zeros((*buffers.face.shape, attribute.shape[-1]), np.float32)
    mask = buffers.mask
    face = buffers.face[mask]
    corners = attribute[face] if faces is None else attribute[faces[face]]
    out[mask] = (corners * buffers.bary[mask][..., None]).sum(axis=-2)
    return out


def unit(vectors: Array) -> Array:
    """Vectors (..., C) of length 1; those without a length stay as they are."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def shrink(images: Array, factor: int) -> Array:
    """Box filter: (V, H f, W f, C) to (V, H, W, C), each pixel the mean of its f x f samples."""
    views, height, width, channels = images.shape
    return images.reshape(views, height // factor, factor, width // factor, factor, channels).mean(axis=(2, 4))


def checked(points: Array, faces: Array, columns: int) -> tuple[Array, Array]:
    """Points (N, columns) as float64 and faces (F, 3) as int64, finite and within range: a kernel does not look where
    it reads. Raises ConfigError if they are not.
    """
    points, faces = np.asarray(points, np.float64), np.ascontiguousarray(faces, np.int64)
    if points.ndim != 2 or points.shape[1] != columns or faces.ndim != 2 or faces.shape[1] != 3:
        raise ConfigError(f"a mesh has points (N, {columns}) and faces (F, 3), not {points.shape} and {faces.shape}")
    if not np.isfinite(points).all():
        raise ConfigError("a mesh to be rasterised has coordinates that are not finite")
    if faces.size and (faces.min() < 0 or faces.max() >= len(points)):
        raise ConfigError(f"the faces name vertices {faces.min()} to {faces.max()}, but there are {len(points)}")
    return points, faces


def _pair(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ConfigError(f"a picture needs at least one pixel (got {height} x {width})")
    return height, width


def _empty(views: int, height: int, width: int) -> Buffers:
    shape = (views, height, width)
    return Buffers(np.full(shape, -1, np.int32), np.zeros((*shape, 3), np.float32), np.full(shape, np.inf, np.float32))


def _view(plane: Array, depth: Array, faces: Array, near: float, result: Buffers, view: int) -> None:
    """One view into its place in `result`; plane (N, 3): the P of the module's text, depth (N,)."""
    part, bounds = np.zeros((len(faces), 2, 3, 2), np.int64), np.zeros((len(faces), 2, 4), np.int64)
    _, height, width = result.face.shape
    prepare(plane, depth, faces, near, height, width, part, bounds)
    fill(plane, depth, faces, part, bounds, result.face[view], result.bary[view], result.z[view])
