"""Unlit renders of an exported mesh with its texture, to compare with renders of its field."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from threedgen.geometry.raster import box_downsample, interpolate, rasterise
from threedgen.geometry.texture import sample
from threedgen.run.arrays import Array


class MeshRender(NamedTuple):
    """rgb (V, H, W, 3) in [0, 1], over the background; alpha (V, H, W) in [0, 1], covered fraction of the pixel."""

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
    """Render a mesh with square images of `size` pixels; other arguments as in `rasterise`.

    values: colours, or uv (v up) into `texture` (H', W', 3), per vertex (N, C) or per corner (F, 3, C). The texture is
    sampled bilinearly without mipmaps; each pixel is the mean of supersample^2 samples. background: grey, or rgb (3,).
    """
    rgb, alpha = [], []
    angles = np.broadcast_to(fov, (len(c2w),))
    for pose, angle in zip(c2w, angles, strict=True):  # one view at a time to limit memory
        hits = rasterise(vertices, faces, pose[None], angle, size * supersample)
        image = interpolate(values, faces if values.ndim == 2 else None, hits)
        image = image if texture is None else sample(texture, image)
        mask = hits.mask[..., None]
        rgb.append(box_downsample(np.where(mask, image, np.asarray(background, np.float32)), supersample)[0])
        alpha.append(box_downsample(mask.astype(np.float32), supersample)[0, ..., 0])
    return MeshRender(np.stack(rgb).astype(np.float32), np.stack(alpha))
