"""Unlit pictures of an exported mesh with its texture, to compare with those of what it was made from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from threedgen.geometry.raster import interpolate, rasterise, shrink
from threedgen.geometry.texture import sample
from threedgen.run.arrays import Array


class MeshRender(NamedTuple):
    """rgb (V, H, W, 3) in [0, 1], over the background; alpha (V, H, W) in [0, 1], the share the mesh covers."""

    rgb: Array
    alpha: Array


def render(
    vertices: Array,
    faces: Array,
    c2w: Array,
    fov: Array | float,
    size: int,
    values: Array,
    texture: Array | None = None,
    background: Array | float = 1.0,
    supersample: int = 2,
) -> MeshRender:
    """Renders a mesh whose vertices (N, C) or corners (F, 3, C) have colours, or uv, v up, in a texture (H', W', 3).

    The texture is read bilinearly (no mip-maps). background: grey, or rgb (3,). Each pixel is the mean of
    supersample^2 samples on a grid. Otherwise as `rasterise`.
    """
    rgb, alpha = [], []
    angles = np.broadcast_to(fov, (len(c2w),))
    for pose, angle in zip(c2w, angles, strict=True):  # one by one: the buffers are larger than the pictures
        seen = rasterise(vertices, faces, pose[None], angle, size * supersample)
        image = interpolate(values, faces if values.ndim == 2 else None, seen)
        image = image if texture is None else sample(texture, image)
        mask = seen.mask[..., None]
        rgb.append(shrink(np.where(mask, image, np.asarray(background, np.float32)), supersample)[0])
        alpha.append(shrink(mask.astype(np.float32), supersample)[0, ..., 0])
    return MeshRender(np.stack(rgb).astype(np.float32), np.stack(alpha))
