"""Inpainting of texels that no image shows.

A 2D model inpaints them in renders of the textured mesh. Each render is from the view with the most unseen texels. The
method follows Text2Tex (Chen et al. 2023, arXiv 2303.11396) and the texturing of MV-Adapter.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.surface.blend import OBJECT_BLEND, poisson
from threedgen.export.surface.from_views import ViewTexture, render, texture_from_views
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.raster import interpolate, rasterise_uv, rasterise_views
from threedgen.guidance.priors.mvadapter.inputs import views
from threedgen.run.arrays import Array

Inpaint = Callable[[Array, Array, int], Array]
"""Function (image (H, W, 3) in [0, 1], hole (H, W), True where unknown, number of the view) -> inpainted image."""

ANGLES = [(elevation, azimuth) for elevation in (-60.0, -30.0, 0.0, 30.0, 60.0) for azimuth in np.arange(0.0, 360, 30)]
"""Candidate views as (elevation, azimuth) in degrees."""
COUNT_SIZE = 128
"""Side in pixels of the renders in which unseen texels are counted."""
MIN_HOLE = 0.02
"""Minimum fraction of a view's pixels that show unseen texels; views with less are not inpainted."""
BLEND = replace(OBJECT_BLEND, cosine=0.1, margin=1)
SEAM_STEPS = 300
"""Iterations of the Poisson solver that adapts the colours of an inpainted hole to its border."""


def inpaint_texture(
    mesh: TexturedMesh, made: ViewTexture, size: int, max_views: int, inpaint: Inpaint, min_hole: float = MIN_HOLE
) -> tuple[ViewTexture, int]:
    """Inpaint the texels that no image shows, in at most `max_views` renders of `size` x `size` pixels.

    `made` has the texture and the mask of the texels that images show. Views in which unseen texels cover less than the
    fraction `min_hole` are not used. Returns the inpainted texture, in which texels that are still unseen keep their
    colours, and the number of views used.
    """
    covered = rasterise_uv(mesh.uv, mesh.faces, made.visible.shape[0]).mask
    looks = [visible_texels(mesh, views([angle], COUNT_SIZE, COUNT_SIZE), made.visible.shape) for angle in ANGLES]
    used = set[int]()
    for number in range(max_views):
        unseen = covered & ~made.visible
        shares = [0.0 if k in used else unseen.flat[look].sum() / COUNT_SIZE**2 for k, look in enumerate(looks)]
        best = int(np.argmax(shares))
        if shares[best] < min_hole:
            return made, number
        used.add(best)
        camera = views([ANGLES[best]], size, size)
        image, hole = render_hole(mesh, made, unseen, camera)
        painted = blend_hole(inpaint(image, hole, number), image, hole)
        masks = hole[None].astype(np.float32)
        made = texture_from_views(mesh, len(unseen), camera, painted[None], BLEND, masks=masks, over=made)
    return made, max_views


def visible_texels(mesh: TexturedMesh, camera: Cameras, shape: tuple[int, int]) -> Array:
    """Return the texels that one camera sees, as indices (N,) into the flattened texture of `shape` (H, W).

    There is one index per pixel that shows the mesh, so indices may repeat. Pixels where the surface is too oblique to
    be coloured from this view are left out.
    """
    buffers = rasterise_views(mesh.vertices, mesh.faces, camera)
    facing = np.abs(interpolate(mesh.normals, mesh.faces, buffers) @ camera.c2w[0, :3, 2].numpy())
    u, v = interpolate(mesh.uv, mesh.faces, buffers)[buffers.mask & (facing > BLEND.cosine)].T
    column, row = u * shape[1], (1 - v) * shape[0]
    inside = (part.astype(np.int64).clip(0, side - 1) for part, side in zip((row, column), shape, strict=True))
    return np.ravel_multi_index(tuple(inside), shape)


def render_hole(mesh: TexturedMesh, made: ViewTexture, unseen: Array, camera: Cameras) -> tuple[Array, Array]:
    """Render the texture for one camera: an image (H, W, 3) in [0, 1], and the bool hole (H, W) to inpaint.

    The hole has the pixels that show texels of the bool mask `unseen` (T, T). Thin lines are removed from the hole.
    """
    both = np.concatenate([made.texture, unseen[..., None]], axis=-1)
    image = render(mesh, both, camera, supersample=1)[0]
    mask = rasterise_views(mesh.vertices, mesh.faces, camera).mask[0]
    hole = ndimage.binary_erosion(mask & (image[..., 3] > 0.5))  # thin lines are not worth a sample
    return image[..., :3], ndimage.binary_dilation(hole, iterations=3) & mask


def blend_hole(painted: Array, image: Array, hole: Array) -> Array:
    """Fill the hole of `image` with the colour gradients of `painted` (Poisson image editing, Perez et al. 2003).

    Both images are (H, W, 3) in [0, 1]; `hole` is bool (H, W), True where `image` is unknown.
    """
    if not hole.any():
        return image
    rows, columns = (np.flatnonzero(hole.any(axis)) for axis in (1, 0))
    part = tuple(slice(max(0, int(p[0]) - 2), int(p[-1]) + 3) for p in (rows, columns))
    result = image.copy()
    result[part] = poisson(painted[part], image[part], hole[part], SEAM_STEPS, start=painted[part])
    return result
