"""A texture from pictures of the mesh: each texel is the weighted mean of the pictures that see it. And the way back:
pictures of a textured mesh.

A picture sees a texel if nothing of the mesh is before it there, and it shows the side of the face that pictures see.
It counts by the square of (cosine of the angle / distance)^2, so that the nearest and straightest decides, times a
window that falls to the picture's borders, where those of other pictures begin; next to an edge of the depth, where a
pixel may show what is before or behind, hardly at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from threedgen.config.errors import ConfigError
from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.topology import area_vectors, pieces, weld
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.raster import interpolate, rasterise_uv, rasterise_views, shrink, unit
from threedgen.geometry.texture import fill, sample
from threedgen.run.arrays import Array

ROWS, FINER = 384, 8
"""The depth by which texels are hidden has at least so many rows, 2 to FINER times those of the pictures."""
EDGE = 0.05
"""Curvature of the inverse depth, of which a plane has none, as a share of it: from here on there is an edge."""
BESIDE_EDGE, AT_BORDER = 1e-4, 1e-3
"""Weight beside an edge, and in the corner of a picture."""
KNOWN, ASIDE = 200_000, 1.0
"""Texels that others are filled from, at most; metres that it counts to face the other way."""


@dataclass(frozen=True)
class ViewTexture:
    """texture (H,W,3) float32 in [0,1], row 0 at v = 1; seen (H,W), bool: texels that a picture shows; share: of those
    that the faces have."""

    texture: Array
    seen: Array
    share: float


def texture_from_views(
    mesh: TexturedMesh,
    size: int,
    at: Cameras,
    images: Array,
    tolerance: float = 0.02,
    on_view: Callable[[], None] = lambda: None,
) -> ViewTexture:
    """The texture, ``size`` texels square, of a mesh that looks like ``images`` (N,h,w,3) in [0,1] from cameras.

    tolerance: how much farther than the nearest surface a texel may be, as a share of its distance. Texels that no
    picture sees have the colour of the nearest of their piece that one sees (see ``_nearest``). on_view:
    called twice for each. Raises ConfigError if none is.
    """
    buffers = rasterise_uv(mesh.uv, mesh.faces, size)
    points = interpolate(mesh.vertices, mesh.faces, buffers)[buffers.mask]
    normals = unit(area_vectors(mesh.vertices, mesh.faces))
    depths, sides = seen_from(mesh, normals, at, on_view)
    face = buffers.face[buffers.mask]
    facing, either = (normals * np.where(sides < 0, -1, 1)[:, None])[face].astype(np.float32), (sides == 0)[face]
    total, weights = np.zeros((len(points), 3), np.float32), np.zeros(len(points), np.float32)
    for n, depth in enumerate(depths):
        c2w, K = at.c2w[n].double().numpy(), at.K[n].double().numpy()
        index, weight, pixels = _weights(points, facing, either, c2w, K, (at.height, at.width), depth, tolerance)
        total[index] += weight[:, None] * sample(images[n], pixels / (at.width, -at.height) + (0, 1))
        weights[index] += weight
        on_view()
    known = weights > 0
    if not known.any():
        raise ConfigError("no picture shows any of the mesh, so there is nothing to make a texture of")
    colours = total / np.maximum(weights, 1e-30)[:, None]
    if not known.all():
        colours[~known] = colours[_nearest(mesh, points, normals, face, known)]
    texture, seen = np.zeros((size, size, 3), np.float32), np.zeros((size, size), bool)
    texture[buffers.mask], seen[buffers.mask] = colours, known
    return ViewTexture(np.clip(fill(texture, buffers.mask), 0, 1), seen, float(known.mean()))


def _nearest(mesh: TexturedMesh, points: Array, normals: Array, face: Array, known: Array) -> Array:
    """For each texel that is not known the nearest that is, of its own piece of the mesh if any is; a texel that faces
    elsewhere is as far away as ASIDE."""
    vertices, faces, _ = weld(mesh.vertices, mesh.faces)
    piece = pieces(faces, len(vertices))[face]
    places = np.concatenate([points, 0.5 * ASIDE * normals[face]], 1).astype(np.float32)
    some = np.flatnonzero(known)[:: -(-int(known.sum()) // KNOWN)]
    lost = np.flatnonzero(~known)
    own = np.isin(piece[lost], piece[some])
    apart = 10 * np.ptp(places, axis=0).max()  # pieces are put side by side, so that none is near another
    found = np.empty(len(lost), np.int64)
    for chosen, step in ((own, apart), (~own, 0.0)):
        if chosen.any():
            whole = np.column_stack([places, step * piece])
            found[chosen] = some[cKDTree(whole[some]).query(whole[lost[chosen]])[1]]
    return found


def seen_from(
    mesh: TexturedMesh, normals: Array, at: Cameras, on_view: Callable[[], None] = lambda: None
) -> tuple[list[Array], Array]:
    """The depth of each camera, finer than its picture, and for each face (F,) from which side it is seen: above 0 from
    outside, below 0 from within, 0 from nowhere."""
    finer = min(max(2, -(-ROWS // at.height)), FINER)
    middle = mesh.vertices[mesh.faces[:, 0]]
    depths, sides = list[Array](), np.zeros(len(mesh.faces))
    fine = at.with_size(at.height * finer, at.width * finer)
    for n in range(len(fine)):
        one = fine.select([n])
        found = rasterise_views(mesh.vertices, mesh.faces, one.c2w.numpy(), one.K.numpy(), (one.height, one.width))
        depths.append(found.z[0])
        count = np.bincount(found.face[found.mask], minlength=len(sides))
        outside = ((one.position[0].numpy() - middle) * normals).sum(1) > 0
        sides += np.where(outside, count, -count)
        on_view()
    return depths, sides


def _weights(
    points: Array, facing: Array, either: Array, c2w: Array, K: Array, size: tuple[int, int], depth: Array, share: float
) -> tuple[Array, Array, Array]:
    """Which texels a picture sees (M,), their weights (M,), and the pixels (M,2) where it does."""
    w2c = (c2w[:3, :3] * (1, -1, -1)).astype(np.float32)
    local = (points - c2w[:3, 3].astype(np.float32)) @ w2c
    index = np.flatnonzero(local[:, 2] > 1e-2)
    local = local[index]
    pixels = (local @ K.T.astype(np.float32))[:, :2] / local[:, 2:]
    there = ((pixels > 0) & (pixels < (size[1], size[0]))).all(1)
    index, local, pixels = index[there], local[there], pixels[there]
    distance = np.linalg.norm(local, axis=1)
    cosine = -((facing[index] @ w2c) * local).sum(1) / np.maximum(distance, 1e-9)
    cosine = np.where(either[index], np.abs(cosine), cosine)
    finer = depth.shape[0] // size[0]
    farthest, edge = _farthest(depth), _edges(depth, finer)
    column, row = ((pixels * finer).astype(np.int32).clip(0, np.array(depth.shape[::-1]) - 1)).T
    seen = (local[:, 2] <= farthest[row, column] * (1 + share)) & (cosine > 0.01)
    index, pixels, distance, cosine = index[seen], pixels[seen], distance[seen], cosine[seen]
    window = np.maximum(1 - np.abs(2 * pixels / (size[1], size[0]) - 1), AT_BORDER).prod(1)
    weight = (cosine / distance) ** 4 * window * np.where(edge[row[seen], column[seen]], BESIDE_EDGE, 1.0)
    return index, weight.astype(np.float32), pixels


def _farthest(depth: Array) -> Array:
    """The farthest of a pixel and those beside it, so that a slope does not hide itself; but not beyond an edge."""
    known = np.where(np.isfinite(depth), depth, 0)
    around = ndimage.maximum_filter(known, 3)
    return np.where(around <= known * (1 + 2 * EDGE), around, known)


def _edges(depth: Array, reach: int) -> Array:
    """Where the depth jumps, ``reach`` pixels to all sides: the inverse depth of a plane is linear in the picture."""
    inverse = np.where(np.isfinite(depth), 1 / np.maximum(depth, 1e-6), 0)
    bent = np.zeros(depth.shape, bool)
    for axis in (0, 1):
        rows = np.moveaxis(inverse, axis, 0)
        curve = np.abs(rows[2:] - 2 * rows[1:-1] + rows[:-2])
        np.moveaxis(bent, axis, 0)[1:-1] |= curve > EDGE * np.maximum(rows[1:-1], 1e-6)
    found: Array = ndimage.maximum_filter(bent, 2 * reach + 1)
    return found


def render(mesh: TexturedMesh, texture: Array, at: Cameras, supersample: int = 2, background: float = 0.5) -> Array:
    """Pictures (N,H,W,3) in [0,1] of a mesh with a texture (H,W,3), unlit, both sides of its faces."""
    size, pictures = (at.height * supersample, at.width * supersample), list[Array]()
    fine = at.with_size(*size)
    for n in range(len(fine)):
        one = fine.select([n])
        found = rasterise_views(mesh.vertices, mesh.faces, one.c2w.numpy(), one.K.numpy(), size)
        image = np.full((*size, 3), background, np.float32)
        uv = interpolate(mesh.uv, mesh.faces, found)[0]
        image[found.mask[0]] = sample(texture, uv[found.mask[0]])
        pictures.append(shrink(image[None], supersample)[0])
    return np.stack(pictures)
