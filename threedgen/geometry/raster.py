"""CPU rasteriser (numba). It returns the face index, the barycentric coordinates and the depth of each pixel.

One kernel serves cameras and texture space. Its vertices are P = (x w, y w, w): (x, y) in pixels, and w the depth along
the viewing axis, or 1 for orthographic cameras and texture space. Corners are rounded to 1/256 pixel and edges are
tested in integers with a fill rule. Triangles that share an edge therefore leave no gap and never cover the same pixel.
Barycentric coordinates and depth use the corners before rounding. With P' the corners relative to the pixel, the
weights are proportional to P_j' x P_k' in the plane. They are perspective-correct without a division by the depths of
the corners (Olano and Greer 1997).
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
    """Rasteriser output at the pixel centres of V views. In texture space the arrays have no V axis.

    Attributes:
        face: (V, H, W) int32 face index, -1 for background.
        bary: (V, H, W, 3) float32 perspective-correct weights of the face's corners, in [0, 1] with sum 1; 0 for
            background.
        z: (V, H, W) float32 depth along the viewing axis in world units; inf for background.
    """

    face: Array
    bary: Array
    z: Array

    @property
    def mask(self) -> Array:
        """Foreground mask (V, H, W), bool."""
        return self.face >= 0


def rasterise(vertices: Array, faces: Array, c2w: Array, fov: Array | float, size: Size, near: float = 1e-2) -> Buffers:
    """Rasterise a mesh, vertices (N, 3) in world units and faces (F, 3), with V perspective cameras.

    If faces are equally distant, the first one is visible. Raises ConfigError for invalid meshes.

    Args:
        c2w: (V, 4, 4) camera-to-world poses with OpenGL axes.
        fov: vertical field of view in radians, scalar or (V,).
        size: image side in pixels, or (height, width).
        near: depth of the clipping plane in world units. Faces that cross it are clipped exactly.
    """
    height, width = _pair(size)
    focal = 0.5 * height / np.tan(0.5 * np.broadcast_to(np.asarray(fov, np.float64), (len(c2w),)))
    K = focal[:, None, None] * np.diag([1.0, 1.0, 0.0])
    K[:, :, 2] += width / 2, height / 2, 1
    return _rasterise(vertices, faces, c2w, K, (height, width), near)


def rasterise_views(vertices: Array, faces: Array, cameras: Cameras, near: float = 1e-2) -> Buffers:
    """Rasterise a mesh, vertices (N, 3) and faces (F, 3), with perspective or orthographic cameras, see `rasterise`."""
    matrices, size = (cameras.c2w.numpy(), cameras.projection.K.numpy()), (cameras.height, cameras.width)
    return _rasterise(vertices, faces, *matrices, size, near, cameras.projection.parallel)


def _rasterise(
    vertices: Array, faces: Array, c2w: Array, K: Array, size: Size, near: float, parallel: bool = False
) -> Buffers:
    poses, K = np.asarray(c2w, np.float64), np.asarray(K, np.float64)
    vertices, faces = validate_mesh(vertices, faces, 3)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or near <= 0:
        raise ConfigError(f"Invalid cameras: c2w.shape={poses.shape}, near={near}. Use c2w (V, 4, 4) and near > 0.")
    result = _empty(len(poses), *_pair(size))
    for view, (pose, k) in enumerate(zip(poses, K, strict=True)):
        local = (vertices - pose[:3, 3]) @ pose[:3, :3] * (1, -1, -1)
        depth = np.ascontiguousarray(local[:, 2])
        if parallel:
            local[:, 2] = 1
        _view(local @ k.T, depth, faces, near, result, view)
    return result


def rasterise_uv(uv: Array, faces: Array | None, size: Size) -> Buffers:
    """Rasterise a mesh in texture space into (H, W) buffers with z = 1. Where charts overlap, the first face wins.

    `uv` is (N, 2) per vertex, or (F, 3, 2) per face corner if `faces` is None. v points up, row 0 is the top. Raises
    ConfigError for invalid meshes.
    """
    height, width = _pair(size)
    if faces is None:
        faces = np.arange(uv.shape[0] * 3).reshape(-1, 3)
    uv, faces = validate_mesh(np.asarray(uv).reshape(-1, 2), faces, 2)
    result = _empty(1, height, width)
    plane = np.stack([uv[:, 0] * width, (1 - uv[:, 1]) * height, np.ones(len(uv))], axis=1)
    _view(plane, plane[:, 2].copy(), faces, 0.0, result, 0)
    return Buffers(result.face[0], result.bary[0], result.z[0])


def interpolate(attribute: Array, faces: Array | None, buffers: Buffers) -> Array:
    """Interpolate an attribute over the faces, at the pixels of the buffers. Return (..., C) float32, 0 for background.

    `attribute` is (N, C) per vertex, or (F, 3, C) per face corner if `faces` is None. Interpolated unit vectors are
    shorter than 1; `unit` normalises them.
    """
    out = np.zeros((*buffers.face.shape, attribute.shape[-1]), np.float32)
    mask = buffers.mask
    face = buffers.face[mask]
    corners = attribute[face] if faces is None else attribute[faces[face]]
    out[mask] = (corners * buffers.bary[mask][..., None]).sum(axis=-2)
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
    """Return points (N, columns) as float64 and faces (F, 3) as int64. The kernels rely on valid indices.

    Raises ConfigError for wrong shapes, non-finite values or vertex indices out of range.
    """
    points, faces = np.asarray(points, np.float64), np.ascontiguousarray(faces, np.int64)
    if points.ndim != 2 or points.shape[1] != columns or faces.ndim != 2 or faces.shape[1] != 3:
        raise ConfigError(f"Mesh shapes are {points.shape}, {faces.shape}. Use points (N, {columns}) and faces (F, 3).")
    if not np.isfinite(points).all():
        raise ConfigError("Mesh coordinates are not finite. Remove NaN and infinity.")
    if faces.size and (faces.min() < 0 or faces.max() >= len(points)):
        used = f"{faces.min()} to {faces.max()}"
        raise ConfigError(f"Face indices are out of range: {used}. Use 0 to {len(points) - 1}.")
    return points, faces


def _pair(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ConfigError(f"Image is empty: size={height} x {width}. Use at least one pixel.")
    return height, width


def _empty(views: int, height: int, width: int) -> Buffers:
    shape = (views, height, width)
    return Buffers(np.full(shape, -1, np.int32), np.zeros((*shape, 3), np.float32), np.full(shape, np.inf, np.float32))


def _view(plane: Array, depth: Array, faces: Array, near: float, result: Buffers, view: int) -> None:
    """Rasterise one view into `result`, for vertices P (N, 3) as in the module docstring and depth (N,)."""
    triangles, bounds = np.zeros((len(faces), 2, 3, 2), np.int64), np.zeros((len(faces), 2, 4), np.int64)
    _, height, width = result.face.shape
    prepare(plane, depth, faces, near, height, width, triangles, bounds)
    fill(plane, depth, faces, triangles, bounds, result.face[view], result.bary[view], result.z[view])
