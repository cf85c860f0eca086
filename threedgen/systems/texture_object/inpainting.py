"""Texels that no side shows, painted by a 2D model: time and again a picture of the mesh from where most of them are
seen, drawn anew where they are (as Text2Tex, Chen et al. 2023, arXiv 2303.11396, and the texturing of MV-Adapter)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from threedgen.export.files.textured import TexturedMesh
from threedgen.export.surface.blend import OBJECT_BLEND, poisson
from threedgen.export.surface.from_views import ViewTexture, render, texture_from_views
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.raster import interpolate, rasterise_uv, rasterise_views
from threedgen.guidance.mvadapter.cameras import views
from threedgen.run.arrays import Array

from .options import InpaintConfig

Paint = Callable[[Array, Array, int], Array]
"""A picture (H,W,3) in [0,1], its hole (H,W), bool, and the number of the view -> a picture that has something in the
hole, and elsewhere is like the first."""

ANGLES = [(elevation, azimuth) for elevation in (-60.0, -30.0, 0.0, 30.0, 60.0) for azimuth in np.arange(0.0, 360, 30)]
"""Elevations and azimuths from where the mesh is looked at, in degrees."""
LOOKED = 128
"""Pixels per side in which it is counted what is seen from there."""
TRUST = replace(OBJECT_BLEND, cosine=0.1, margin=1)
"""Of a picture about its hole: a side that is seen at a smaller angle is better than none."""
SMOOTHING = 300
"""Steps in which what was painted gets the colours around it, from the border of the hole on."""


def inpainted(
    mesh: TexturedMesh, made: ViewTexture, size: int, config: InpaintConfig, paint: Paint
) -> tuple[ViewTexture, int]:
    """A texture whose unseen texels are painted in pictures of ``size`` pixels, and how many it took. What is left is
    completed as it was."""
    covered = rasterise_uv(mesh.uv, mesh.faces, made.visible.shape[0]).mask
    looks, used = [texels_of(mesh, views([angle], LOOKED, LOOKED), made.visible.shape) for angle in ANGLES], set[int]()
    for number in range(config.views):
        unseen = covered & ~made.visible
        shares = [0.0 if k in used else unseen.flat[look].sum() / LOOKED**2 for k, look in enumerate(looks)]
        best = int(np.argmax(shares))
        if shares[best] < config.least:
            return made, number
        used.add(best)
        at = views([ANGLES[best]], size, size)
        picture, hole = with_hole(mesh, made, unseen, at)
        painted = without_seam(paint(picture, hole, number), picture, hole)
        masks = hole[None].astype(np.float32)
        made = texture_from_views(mesh, len(unseen), at, painted[None], TRUST, masks=masks, over=made)
    return made, config.views


def texels_of(mesh: TexturedMesh, at: Cameras, shape: tuple[int, int]) -> Array:
    """The texels (N,) of a texture that the pixels of one camera show well enough, by their numbers."""
    found = rasterise_views(mesh.vertices, mesh.faces, at)
    facing = np.abs(interpolate(mesh.normals, mesh.faces, found) @ at.c2w[0, :3, 2].numpy())
    u, v = interpolate(mesh.uv, mesh.faces, found)[found.mask & (facing > TRUST.cosine)].T
    column, row = u * shape[1], (1 - v) * shape[0]
    inside = (part.astype(np.int64).clip(0, side - 1) for part, side in zip((row, column), shape, strict=True))
    return np.ravel_multi_index(tuple(inside), shape)


def with_hole(mesh: TexturedMesh, made: ViewTexture, unseen: Array, at: Cameras) -> tuple[Array, Array]:
    """The picture (H,W,3) that one camera has of a texture, and where in it ``unseen`` texels (T,T) are, (H,W)."""
    both = np.concatenate([made.texture, unseen[..., None]], axis=-1)
    shown = render(mesh, both, at, supersample=1)[0]
    there = rasterise_views(mesh.vertices, mesh.faces, at).mask[0]
    hole = ndimage.binary_erosion(there & (shown[..., 3] > 0.5))  # lines at edges are not worth a model's time
    hole = ndimage.binary_dilation(hole, iterations=3) & there
    return shown[..., :3], hole


def without_seam(painted: Array, picture: Array, hole: Array) -> Array:
    """The picture (H,W,3) with what was ``painted`` in its hole (H,W), and no step at the border that is not painted:
    the gradients there are those of the painted picture (Perez et al. 2003)."""
    if not hole.any():
        return picture
    rows, columns = (np.flatnonzero(hole.any(axis)) for axis in (1, 0))
    part = tuple(slice(max(0, int(p[0]) - 2), int(p[-1]) + 3) for p in (rows, columns))
    result = picture.copy()
    result[part] = poisson(painted[part], picture[part], hole[part], SMOOTHING, start=painted[part])
    return result
