"""Unlit pictures of an exported mesh with its texture, to compare with those of what it was made from."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from threedgen.geometry.raster import interpolate, rasterise, shrink
from threedgen.geometry.texture import sample

Array = NDArray[Any]


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
    *,
    uv: Array | None = None,
    texture: Array | None = None,
    colours: Array | None = None,
    background: Array | float = 1.0,
    supersample: int = 2,
) -> MeshRender:
    """Renders a mesh with a texture (H', W', 3) and uv (N, 2) or (F, 3, 2), v up, or with colours (N, 3) of vertices.

    The texture is read bilinearly (no mip-maps). background: grey, or rgb (3,). Each pixel is the mean of
    supersample^2 samples on a grid. Otherwise as `rasterise`.
    """
    rgb, alpha = [], []
    angles = np.broadcast_to(fov, (len(c2w),))
    for pose, angle in zip(c2w, angles, strict=True):  # one by one: the buffers are larger than the pictures
        seen = rasterise(vertices, faces, pose[None], angle, size * supersample)
        if texture is not None and uv is not None:
            image = sample(texture, interpolate(uv, faces if uv.ndim == 2 else None, seen))
        else:
            image = interpolate(np.asarray(colours), faces, seen)
        mask = seen.mask[..., None]
        rgb.append(shrink(np.where(mask, image, np.asarray(background, np.float32)), supersample)[0])
        alpha.append(shrink(mask.astype(np.float32), supersample)[0, ..., 0])
    return MeshRender(np.stack(rgb).astype(np.float32), np.stack(alpha))
