"""A texture from pictures of the mesh: each texel is the weighted mean of the pictures that see it. And the way back:
pictures of a textured mesh.

A picture sees a texel if nothing of the mesh is before it there, and it shows the side of the face that pictures see.
Next to an edge of the depth, where a pixel may show what is before or behind, it is hardly believed, or not at all;
`blend.Trust` has the limits and the weights. Cameras may be in perspective, inside of a scene or around a thing, or of
parallel rays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from threedgen.config.errors import ConfigError
from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.mesh import vertex_normals
from threedgen.export.shape.topology import area_vectors, pieces, weld
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import psnr
from threedgen.geometry.raster import Buffers, interpolate, rasterise_uv, rasterise_views, shrink, unit
from threedgen.geometry.texture import fill, sample
from threedgen.run.arrays import Array

from .blend import SCENE, Mean, Trust
from .complete import Places, diffuse

ROWS, FINER = 384, 8
"""The depth by which texels are hidden has at least so many rows, 2 to FINER times those of the pictures."""
AT_BORDER = 1e-3
"""Weight in the corner of a picture that has a window."""
MASK = 0.9
"""Opacity from which on a picture shows the mesh."""


@dataclass(frozen=True)
class ViewTexture:
    """texture (H,W,3) float32 in [0,1], row 0 at v = 1; seen (H,W), bool: texels that a picture shows; share: of those
    that the faces have; psnr: how alike a texel and each picture that is believed about it are, in dB; 0: none is."""

    texture: Array
    seen: Array
    share: float
    psnr: float


@dataclass(frozen=True)
class Texels:
    """N texels: points (N,3); normals (N,3) of their faces and smooth ones, unit, towards where pictures are; either
    (N,), bool: faces that no picture sees, which may look to both sides."""

    points: Array
    normals: Array
    smooth: Array
    either: Array


def texture_from_views(
    mesh: TexturedMesh,
    size: int,
    at: Cameras,
    images: Array,
    trust: Trust = SCENE,
    *,
    masks: Array | None = None,
    view_weights: Sequence[float] | None = None,
    over: ViewTexture | None = None,
    on_view: Callable[[], None] = lambda: None,
) -> ViewTexture:
    """The texture, ``size`` texels square, of a mesh that looks like ``images`` (N,h,w,3) in [0,1] from cameras.

    masks (N,h,w) in [0,1]: where the images show the mesh; view_weights: a picture with more of it counts for more;
    over: a texture of before, for texels that no picture sees; those that it has not seen either are completed. on_view
    is called twice for each picture. Raises ConfigError if none shows any of the mesh.
    """
    buffers = rasterise_uv(mesh.uv, mesh.faces, size)
    normals = unit(area_vectors(mesh.vertices, mesh.faces))
    depths, sides = seen_from(mesh, normals, at, on_view)
    texels = take_texels(mesh, buffers, normals, sides)
    mean, places, said = Mean(len(texels.points)), list[Array](), list[Array]()
    for n, depth in enumerate(depths):
        index, weight, pixels = _weights(texels, at, n, depth, trust, 1.0 if view_weights is None else view_weights[n])
        where = pixels / (at.width, -at.height) + (0, 1)
        if masks is not None:
            weight = weight * (sample(masks[n][..., None], where)[:, 0] > MASK)
        believed, colours = weight > 0, sample(images[n], where)
        mean.add(colours, weight, index)
        places.append(index[believed])
        said.append(colours[believed])
        on_view()
    before = np.zeros_like(texels.points) if over is None else over.texture[buffers.mask]
    known = mean.known if over is None else mean.known | over.seen[buffers.mask]
    if not known.any():
        raise ConfigError("no picture shows any of the mesh, so there is nothing to make a texture of")
    colours = mean.over(before, least=1e-30)
    if not known.all():
        vertices, faces, _ = weld(mesh.vertices, mesh.faces)
        piece = pieces(faces, len(vertices))[buffers.face[buffers.mask]]
        colours = diffuse(Places(texels.points, texels.normals, piece), colours, known)
    texture, seen = np.zeros((size, size, 3), np.float32), np.zeros((size, size), bool)
    texture[buffers.mask], seen[buffers.mask] = colours, known
    told = np.concatenate(said)
    alike = psnr(told, colours[np.concatenate(places)]) if len(told) else 0.0
    return ViewTexture(np.clip(fill(texture, buffers.mask), 0, 1), seen, float(known.mean()), alike)


def take_texels(mesh: TexturedMesh, buffers: Buffers, normals: Array, sides: Array) -> Texels:
    """The texels that a face covers, row by row; for ``sides`` see ``seen_from``."""
    face = buffers.face[buffers.mask]
    outwards = np.where(sides < 0, -1, 1)
    vertices, faces, which = weld(mesh.vertices, mesh.faces)
    turned = np.where(outwards[:, None] < 0, faces[:, ::-1], faces)
    smooth = interpolate(vertex_normals(vertices, turned)[which], mesh.faces, buffers)[buffers.mask]
    return Texels(
        points=interpolate(mesh.vertices, mesh.faces, buffers)[buffers.mask],
        normals=(normals * outwards[:, None])[face].astype(np.float32),
        smooth=unit(smooth),
        either=(sides == 0)[face],
    )


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
        found = rasterise_views(mesh.vertices, mesh.faces, one)
        depths.append(found.z[0])
        count = np.bincount(found.face[found.mask], minlength=len(sides))
        toward = one.c2w[0, :3, 2].numpy() if at.projection.parallel else one.position[0].numpy() - middle
        outside = (toward * normals).sum(1) > 0
        sides += np.where(outside, count, -count)
        on_view()
    return depths, sides


def _weights(
    texels: Texels, at: Cameras, n: int, depth: Array, trust: Trust, view_weight: float
) -> tuple[Array, Array, Array]:
    """Which texels picture n sees (M,), their weights (M,), and the pixels (M,2) where it does."""
    c2w, K, size = at.c2w[n].double().numpy(), at.projection.K[n].numpy(), np.array([at.width, at.height])
    w2c = (c2w[:3, :3] * (1, -1, -1)).astype(np.float32)
    local = (texels.points - c2w[:3, 3].astype(np.float32)) @ w2c
    index = np.flatnonzero(local[:, 2] > 1e-2)
    local = local[index]
    pixels = (local[:, :2] if at.projection.parallel else local[:, :2] / local[:, 2:]) @ K[:2, :2].T + K[:2, 2]
    there = ((pixels > 0) & (pixels < size)).all(1)
    index, local, pixels = index[there], local[there], pixels[there]
    if at.projection.parallel:
        toward, near = np.array([[0, 0, -1]], np.float32), np.float32(1)
    else:
        near = 1 / np.maximum(np.linalg.norm(local, axis=1), 1e-9)
        toward = -local * near[:, None]
    straight, smooth = (((part[index] @ w2c) * toward).sum(1) for part in (texels.normals, texels.smooth))
    either = texels.either[index]
    straight, smooth = np.where(either, np.abs(straight), straight), np.where(either, np.abs(smooth), smooth)
    fine = depth.shape[0] // at.height
    column, row = (pixels * fine).astype(np.int32).clip(0, np.array(depth.shape[::-1]) - 1).T
    farthest = _farthest(depth, trust.jump, at.projection.parallel)[row, column]
    error = local[:, 2] - farthest if at.projection.parallel else local[:, 2] / np.maximum(farthest, 1e-9) - 1
    jumps = _jumps(depth, fine * trust.margin, at.projection.parallel)
    jump = jumps[row, column]
    seen = trust.valid(error, straight, jump)
    weight = trust.weight(np.maximum(smooth, trust.cosine) * near, seen, view_weight)
    weight = weight * np.where(jump < trust.jump, 1.0, trust.beside_edge)
    if trust.feather:
        weight = weight * _feathered(jumps < trust.jump, trust.feather * depth.shape[0])[row, column]
    if trust.window:
        weight = weight * np.maximum(1 - np.abs(2 * pixels / size - 1), AT_BORDER).prod(1)
    seen = weight > 0
    return index[seen], weight[seen].astype(np.float32), pixels[seen]


def _farthest(depth: Array, jump: float, parallel: bool) -> Array:
    """The farthest of a pixel and those beside it, so that a slope does not hide itself; but not beyond an edge."""
    known = np.where(np.isfinite(depth), depth, 0)
    around = ndimage.maximum_filter(known, 3)
    return np.where(around - known <= 2 * jump * (1 if parallel else known), around, known)


def _jumps(depth: Array, reach: int, parallel: bool) -> Array:
    """How far the depth is from being that of a plane, the most within ``reach`` pixels: a length if rays are parallel,
    else a share of the depth, as there the inverse depth of a plane is linear in the picture."""
    there = np.isfinite(depth)
    if parallel:
        linear = np.where(there, depth, 2 * np.max(depth, where=there, initial=1))
    else:
        linear = np.where(there, 1 / np.maximum(depth, 1e-6), 0)
    bent = np.zeros(depth.shape, np.float32)
    for axis in (0, 1):
        rows = np.moveaxis(linear, axis, 0)
        curve = np.abs(rows[2:] - 2 * rows[1:-1] + rows[:-2])
        curve = curve if parallel else curve / np.maximum(rows[1:-1], 1e-6)
        part = np.moveaxis(bent, axis, 0)[1:-1]
        np.maximum(part, curve, out=part)
    found: Array = ndimage.maximum_filter(bent, 2 * reach + 1)
    return found


def _feathered(clear: Array, reach: float) -> Array:
    """For each pixel that is clear how far it is from those that are not, as a share of ``reach`` pixels, at most 1."""
    ramp: Array = np.clip(ndimage.distance_transform_edt(clear) / reach, AT_BORDER, 1) if not clear.all() else clear
    return ramp


def render(mesh: TexturedMesh, texture: Array, at: Cameras, supersample: int = 2, background: float = 0.5) -> Array:
    """Pictures (N,H,W,C) in [0,1] of a mesh with a texture (H,W,C), unlit, both sides of its faces."""
    size, pictures = (at.height * supersample, at.width * supersample), list[Array]()
    fine = at.with_size(*size)
    for n in range(len(fine)):
        one = fine.select([n])
        found = rasterise_views(mesh.vertices, mesh.faces, one)
        image = np.full((*size, texture.shape[-1]), background, np.float32)
        uv = interpolate(mesh.uv, mesh.faces, found)[0]
        image[found.mask[0]] = sample(texture, uv[found.mask[0]])
        pictures.append(shrink(image[None], supersample)[0])
    return np.stack(pictures)
