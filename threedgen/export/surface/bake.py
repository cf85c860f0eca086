"""What the dense surface knows, in textures of the simple one: colour, small relief, and how open each place is.

Each texel that a face covers has a place on the simple mesh. From there the dense surface is looked for along the
smooth normal, both ways, within a cage; its normal is written in the tangent frame of the simple mesh, and the field
is asked for the colour there. Everything else of the texture is filled from the nearest texel that is covered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from threedgen.config.errors import ConfigError
from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.mesh import Mesh
from threedgen.export.surface.tangents import vertex_tangents
from threedgen.geometry.raster import Buffers, interpolate, rasterise_uv, shrink, unit
from threedgen.geometry.texture import fill
from threedgen.run.arrays import Array

from . import bvh as rays

Colours = Callable[[Array], Array]

CAGE = 0.012
"""How far the dense surface may be from the simple one, as a share of the diagonal of its box."""
LIFT = 0.004
"""How far above the surface the rays of the occlusion start, as a share of the diagonal: above its own facets."""
REACH = 0.3
"""How far away something still takes light, as a share of the diagonal."""
ALIKE = 0.5
"""Cosine from which on a normal of the dense surface is believed to be of the same place as one of the simple mesh."""
ROUGH_NO_METAL = np.array([1.0, 0.0], np.float32)
"""Roughness and metal of every texel: a field knows neither."""


@dataclass(frozen=True)
class Maps:
    """Textures (H, W, 3) float32, whole backgrounds filled; row 0 is at v = 1.

    base_colour: unlit, sRGB in [0, 1]. normal: unit vectors in the tangent frame, green along growing v (OpenGL, glTF).
    orm: red occlusion (1 is open), green roughness, blue metal, all linear in [0, 1]. covered (H, W) bool: texels of
    faces. info: coverage, and the share of texels for which no dense surface was found in the cage.
    """

    base_colour: Array
    normal: Array
    orm: Array
    covered: Array
    info: dict[str, float]

    def halved(self) -> Maps:
        """Half the texels along each edge: the means of four, and normals of unit length again."""
        base_colour, normal, orm = (shrink(map_[None], 2)[0] for map_ in (self.base_colour, self.normal, self.orm))
        covered = self.covered[::2, ::2] | self.covered[1::2, ::2] | self.covered[::2, 1::2] | self.covered[1::2, 1::2]
        return Maps(base_colour, unit(normal).astype(np.float32), orm, covered, self.info)

    def uint8(self) -> dict[str, Array]:
        """base_colour, normal and orm (H, W, 3) uint8, as they go into files: 255 x, and 128 + 127 n for normals."""
        return {
            "base_colour": _bytes(255 * self.base_colour),
            "normal": _bytes(128 + 127 * self.normal),
            "orm": _bytes(255 * self.orm),
        }


def bake(
    low: TexturedMesh,
    dense: Mesh,
    size: int | tuple[int, int],
    colours: Colours | None = None,
    *,
    cage: float = CAGE,
    occlusion_rays: int = 64,
) -> Maps:
    """The textures of `low`, of `size` or (height, width) texels.

    colours: points (N, 3) float32 in world units -> sRGB (N, 3); None: the colours of the dense mesh's vertices. cage
    is a share of the diagonal of low's box; occlusion_rays 0 leaves the occlusion at 1. Raises ConfigError for
    uv outside the texture, and colours of the wrong shape.
    """
    buffers = rasterise_uv(low.uv, low.faces, size)
    if not buffers.mask.any():
        raise ConfigError("no texel is covered by a face: the uv are outside of [0, 1], or the texture is too small")
    texels = texel_frames(low, buffers)
    diagonal = float(np.linalg.norm(np.ptp(low.vertices, axis=0)))
    tree = rays.build(dense.vertices, dense.faces)
    found = project(tree, dense, texels.points, texels.normals, cage * diagonal)
    toward = unit(found.of(dense.normals, dense.faces))
    same = found.hit & ((toward * texels.normals).sum(axis=1) > ALIKE)
    bumps = tangent_space(np.where(same[:, None], toward, texels.normals), texels)
    rgb = found.of(dense.colours, dense.faces) if colours is None else _ask(colours, found.points)
    openness = np.ones(len(dense.vertices), np.float32)
    if occlusion_rays:
        reach, lift = REACH * diagonal, LIFT * diagonal
        openness = rays.openness(tree, dense.vertices, dense.normals, occlusion_rays, reach, lift)
    openness = found.of(openness[:, None], dense.faces)

    image = np.zeros((*buffers.mask.shape, 7), np.float32)
    image[buffers.mask] = np.concatenate([rgb, bumps, openness], axis=1)
    image = fill(image, buffers.mask)
    constant = np.broadcast_to(ROUGH_NO_METAL, (*buffers.mask.shape, 2))
    return Maps(
        base_colour=np.clip(image[..., :3], 0, 1),
        normal=unit(image[..., 3:6]).astype(np.float32),
        orm=np.concatenate([np.clip(image[..., 6:], 0, 1), constant], axis=-1),
        covered=buffers.mask,
        info={"coverage": float(buffers.mask.mean()), "missed": float(1 - found.hit.mean())},
    )


def wearing_normals(low: TexturedMesh, dense: Mesh) -> TexturedMesh:
    """The simple mesh with the smooth normals of the dense one, so that little is left for the map of normals.

    Where the nearest place of the dense surface faces elsewhere (the other side of a thin part), it keeps its own.
    """
    found = dense.normals[cKDTree(dense.vertices).query(low.vertices)[1]]
    near = (found * low.normals).sum(axis=1, keepdims=True) > ALIKE
    normals = np.where(near, found, low.normals).astype(np.float32)
    return replace(low, normals=normals, tangents=vertex_tangents(low.vertices, low.faces, normals, low.uv))


@dataclass(frozen=True)
class Texels:
    """Frames of N texels on the simple mesh: points (N, 3), normals and tangents (N, 3), unit; signs (N,), +-1."""

    points: Array
    normals: Array
    tangents: Array
    signs: Array


def texel_frames(low: TexturedMesh, buffers: Buffers) -> Texels:
    """The frames of the covered texels, row by row, as a renderer interpolates them."""
    parts = (low.vertices, low.normals, low.tangents)
    points, normals, tangents = (interpolate(part, low.faces, buffers)[buffers.mask] for part in parts)
    signs = np.where(tangents[:, 3] < 0, -1, 1).astype(np.float32)
    return Texels(points, unit(normals), unit(tangents[:, :3]), signs)


@dataclass(frozen=True)
class Projected:
    """N points of the dense surface: points (N, 3); the face (N,) and weights (N, 3) of its corners; hit (N,) bool.

    Without a hit, points are where they were, and the face and weights name the nearest vertex.
    """

    points: Array
    face: Array
    bary: Array
    hit: Array

    def of(self, attribute: Array, faces: Array) -> Array:
        """An attribute (V, C) of the dense vertices at the points, (N, C)."""
        values: Array = (attribute[faces[self.face]] * self.bary[..., None]).sum(axis=1)
        return values


def project(tree: rays.Bvh, dense: Mesh, points: Array, normals: Array, cage: float) -> Projected:
    """The nearest place of the dense surface along the normals, either way, nearer than `cage` (world units), of those
    that face the same way."""
    face, bary, distance = rays.nearest_along(tree, points, normals, cage)
    hit = face >= 0
    moved = points + np.where(hit, distance, 0)[:, None] * normals
    lost = np.flatnonzero(~hit)
    if len(lost):
        _, nearest = cKDTree(dense.vertices).query(points[lost])
        owner = np.zeros(len(dense.vertices), np.int64)
        corner = np.zeros(len(dense.vertices), np.int64)
        for k in range(3):
            owner[dense.faces[:, k]], corner[dense.faces[:, k]] = np.arange(len(dense.faces)), k
        face[lost], bary[lost] = owner[nearest], np.eye(3, dtype=np.float32)[corner[nearest]]
    return Projected(moved.astype(np.float32), face, bary, hit)


def tangent_space(directions: Array, texels: Texels) -> Array:
    """Unit directions (N, 3) as x, y, z with x T + y B + z N along them, unit; T and N may lean towards each other.

    A renderer makes B = sign * cross(N, T) from the interpolated T and N, both unit, so this is what it undoes.
    Directions below the surface, which such a texture cannot hold, are brought up to just above it.
    """
    normal, tangent = texels.normals, texels.tangents
    bitangent = np.cross(normal, tangent) * texels.signs[:, None]
    lean = (tangent * normal).sum(axis=1)
    along, up = (directions * tangent).sum(axis=1), (directions * normal).sum(axis=1)
    straight = np.maximum(1 - lean**2, 1e-6)
    x, z = (along - lean * up) / straight, (up - lean * along) / straight
    y = (directions * bitangent).sum(axis=1) / straight
    return unit(np.stack([x, y, np.maximum(z, 0.01)], axis=1)).astype(np.float32)


def _ask(colours: Colours, points: Array) -> Array:
    """Colours (N, 3) in [0, 1] of points."""
    rgb = np.asarray(colours(points), np.float32)
    if rgb.shape != points.shape or not np.isfinite(rgb).all():
        raise ConfigError(f"the field's colours of {points.shape} points are {rgb.shape} or not finite")
    return np.clip(rgb, 0, 1)


def _bytes(values: Array) -> Array:
    return np.round(np.clip(values, 0, 255)).astype(np.uint8)
