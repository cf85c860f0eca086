"""Render an exported mesh with its texture, unlit, to compare the images with renders of its field."""

from typing import NamedTuple

import numpy as np

from threedgen.geometry.raster import box_downsample, interpolate, rasterise
from threedgen.geometry.texture import sample
from threedgen.run.arrays import Array


class MeshRender(NamedTuple):
    """Renders of V views: rgb (V, H, W, 3) in [0, 1] over the background, and alpha (V, H, W) in [0, 1].

    Alpha is the fraction of a pixel that the mesh covers.
    """

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
    """Render a mesh with vertices (N, 3) and faces (F, 3) to square images of `size` pixels.

    Args:
        c2w: (V, 4, 4) camera-to-world poses with OpenGL axes.
        fov: vertical field of view in radians, scalar or (V,).
        values: colours, or uv with v upwards if there is a texture, per vertex (N, C) or per face corner (F, 3, C).
        texture: (H', W', 3) in [0, 1], sampled bilinearly without mipmaps; None: `values` are colours.
        background: grey value, or rgb (3,), in [0, 1].
        supersample: supersampling factor along each axis; a pixel is the mean of supersample^2 samples.
    """
    rgb, alpha = [], []
    angles = np.broadcast_to(fov, (len(c2w),))
    index = faces if values.ndim == 2 else np.arange(3 * len(faces)).reshape(-1, 3)
    for pose, angle in zip(c2w, angles, strict=True):  # one view at a time to limit memory
        hits = rasterise(vertices, faces, pose[None], angle, size * supersample)
        image = interpolate(values.reshape(-1, values.shape[-1]), index, hits)
        image = image if texture is None else sample(texture, image)
        mask = hits.mask[..., None]
        rgb.append(box_downsample(np.where(mask, image, np.asarray(background, np.float32)), supersample)[0])
        alpha.append(box_downsample(mask.astype(np.float32), supersample)[0, ..., 0])
    return MeshRender(np.stack(rgb).astype(np.float32), np.stack(alpha))
