"""Bake the dense surface into textures of the low-poly mesh: base colour, normal map, ambient occlusion.

Each covered texel has a point on the low-poly mesh. From this point, the dense surface is searched along the smooth
normal of the low-poly mesh, in both directions and up to 1.2 % (CAGE) of the diagonal of the bounding box. At the hit,
the field is queried for the colour, and the normal of the dense surface is stored in tangent space. Texels that no face
covers get the values of the nearest covered texel.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
from scipy.spatial import cKDTree

from threedgen.export.options import MATERIALS, Material
from threedgen.export.shape.mesh import Mesh, TexturedMesh, vertex_tangents
from threedgen.geometry.raster import Buffers, box_downsample, interpolate, rasterise_uv, unit
from threedgen.geometry.texture import fill
from threedgen.run.arrays import Array

from . import bvh as rays

CAGE = 0.012  # maximum distance between dense and low-poly surface, as a fraction of the bounding-box diagonal
OCCLUSION_RAYS = 64  # number of rays per dense vertex for the ambient occlusion
AO_OFFSET = 0.004  # start of occlusion rays above the surface, as a fraction of the diagonal, to miss nearby faces
AO_DISTANCE = 0.3  # length of occlusion rays, as a fraction of the bounding-box diagonal
MIN_NORMAL_COSINE = 0.5  # smallest cosine of dense and low-poly normals on the same side of a thin part


@dataclass(frozen=True)
class Maps:
    """Baked textures `base_colour`, `normal` (tangent space) and `orm`, each (H, W, 3) float32, row 0 at v = 1.

    `orm` has occlusion, roughness and metallic value in red, green and blue. Texels that no face covers have the value
    of the nearest covered texel.
    """

    base_colour: Array  # unlit colour, sRGB in [0, 1]
    normal: Array  # unit vectors in tangent space; green points along +v, as in OpenGL and glTF
    orm: Array  # red: occlusion (1 is unoccluded), green: roughness, blue: metallic; linear in [0, 1]
    covered: Array  # (H, W) bool, texels inside a face
    info: dict[str, float]  # "coverage": fraction of covered texels; "missed": fraction of covered texels without a hit

    def halved(self) -> Self:
        """Return the textures at half resolution, as means of 2 x 2 texels. Mean normals are normalised to length 1."""
        maps = self.base_colour, self.normal, self.orm
        base_colour, normal, orm = (box_downsample(image[None], 2)[0] for image in maps)
        covered = self.covered[::2, ::2] | self.covered[1::2, ::2] | self.covered[::2, 1::2] | self.covered[1::2, 1::2]
        normal = unit(normal).astype(np.float32)
        return replace(self, base_colour=base_colour, normal=normal, orm=orm, covered=covered)

    def uint8(self) -> dict[str, Array]:
        """Return the textures base_colour, normal and orm by name, as uint8 (H, W, 3) for image files.

        Values c in [0, 1] of base_colour and orm are stored as 255 c, components n of a normal as 128 + 127 n.
        """
        scaled = {"base_colour": 255 * self.base_colour, "normal": 128 + 127 * self.normal, "orm": 255 * self.orm}
        return {name: np.round(np.clip(values, 0, 255)).astype(np.uint8) for name, values in scaled.items()}


def bake(
    low: TexturedMesh,
    dense: Mesh,
    size: int | tuple[int, int],
    colours: Callable[[Array], Array] | None = None,
    material: Material = MATERIALS["matte"],
) -> Maps:
    """Bake the colours, normals and ambient occlusion of the dense surface into textures of the low-poly mesh.

    Args:
        low: low-poly mesh with UVs, in the same world space as `dense`.
        dense: mesh of the field's surface.
        size: texture edge in texels, or (height, width).
        colours: function from points (N, 3) float32 in world units to sRGB (N, 3) in [0, 1]; None: use the vertex
            colours of `dense`.
        material: roughness and metallic value of all texels, because a field does not define them.
    """
    buffers = rasterise_uv(low.uv, low.faces, size)
    texels = texel_frames(low, buffers)
    diagonal = float(np.linalg.norm(np.ptp(low.vertices, axis=0)))
    tree = rays.build(dense.vertices, dense.faces)
    projected = project(tree, dense, texels.points, texels.normals, CAGE * diagonal)
    normals = unit(projected.interpolate(dense.normals, dense.faces))
    same_side = projected.hit & ((normals * texels.normals).sum(axis=1) > MIN_NORMAL_COSINE)
    relief = tangent_space(np.where(same_side[:, None], normals, texels.normals), texels)
    rgb = projected.interpolate(dense.colours, dense.faces) if colours is None else colours(projected.points)
    reach, lift = AO_DISTANCE * diagonal, AO_OFFSET * diagonal
    occlusion = rays.ambient_occlusion(tree, dense.vertices, dense.normals, OCCLUSION_RAYS, reach, lift)
    occlusion = projected.interpolate(occlusion[:, None], dense.faces)

    image = np.zeros((*buffers.mask.shape, 7), np.float32)
    image[buffers.mask] = np.concatenate([rgb, relief, occlusion], axis=1)
    image = fill(image, buffers.mask)
    constant = np.broadcast_to(np.asarray(material, np.float32), (*buffers.mask.shape, 2))
    return Maps(
        base_colour=np.clip(image[..., :3], 0, 1),
        normal=unit(image[..., 3:6]).astype(np.float32),
        orm=np.concatenate([np.clip(image[..., 6:], 0, 1), constant], axis=-1),
        covered=buffers.mask,
        info={"coverage": float(buffers.mask.mean()), "missed": float(1 - projected.hit.mean())},
    )


def with_dense_normals(low: TexturedMesh, dense: Mesh) -> TexturedMesh:
    """Return `low` with the normals of the dense mesh, so that its normal map stores only fine detail.

    Each vertex gets the normal of the nearest dense vertex and a new tangent. If the cosine between this normal and the
    vertex's old one is at most 0.5 (MIN_NORMAL_COSINE), the vertex keeps the old one.
    """
    nearest = dense.normals[cKDTree(dense.vertices).query(low.vertices)[1]]
    same_side = (nearest * low.normals).sum(axis=1, keepdims=True) > MIN_NORMAL_COSINE
    normals = np.where(same_side, nearest, low.normals).astype(np.float32)
    return replace(low, normals=normals, tangents=vertex_tangents(low.vertices, low.faces, normals, low.uv))


class Texels(NamedTuple):
    """N texels: surface `points` (N, 3), unit `normals` (N, 3), unit `tangents` (N, 3) and `signs` (N,), +1 or -1.

    The bitangent of a texel is sign * cross(normal, tangent).
    """

    points: Array  # (N, 3), world units
    normals: Array  # (N, 3), unit
    tangents: Array  # (N, 3), unit
    signs: Array  # (N,), +1 or -1; bitangent = sign * cross(normal, tangent)


def texel_frames(low: TexturedMesh, buffers: Buffers) -> Texels:
    """Return surface points and tangent frames of the texels of a mesh, interpolated from its vertices.

    `low` is the mesh with UVs whose textures are baked. `buffers`, from `rasterise_uv`, has for each texel the face of
    `low` that covers it, if any, and the barycentric weights of the face's corners. The result has only the N covered
    texels, row by row, starting at v = 1.
    """
    parts = (low.vertices, low.normals, low.tangents)
    points, normals, tangents = (interpolate(part, low.faces, buffers)[buffers.mask] for part in parts)
    signs = np.where(tangents[:, 3] < 0, -1, 1).astype(np.float32)
    return Texels(points, unit(normals), unit(tangents[:, :3]), signs)


class Projected(NamedTuple):
    """N points that `project` moved along their normals onto a mesh.

    Attributes:
        points: (N, 3) points on the mesh, world units; without a hit, the input points.
        face: (N,) index of the mesh face that has the point; without a hit, some face at the nearest vertex of the
            mesh.
        bary: (N, 3) barycentric weights of the face's corners; without a hit, 1 for the nearest vertex and 0 for the
            others.
        hit: (N,) bool, whether the mesh was hit within the maximum distance.
    """

    points: Array  # (N, 3) projected points, world units; the input points where `hit` is False
    face: Array  # (N,) index of the dense face; where `hit` is False, a face of the nearest dense vertex
    bary: Array  # (N, 3) barycentric weights of the face's corners
    hit: Array  # (N,) bool, whether the line meets the surface inside the cage

    def interpolate(self, attribute: Array, faces: Array) -> Array:
        """Interpolate a vertex attribute (V, C) of a mesh at the N points that were projected onto it.

        `faces` (F, 3) are the faces of this mesh. Returns values (N, C).
        """
        return (attribute[faces[self.face]] * self.bary[..., None]).sum(axis=1)


def project(tree: rays.Bvh, dense: Mesh, points: Array, normals: Array, cage: float) -> Projected:
    """Move points (N, 3) along their unit normals (N, 3), in either direction, onto the nearest face of the dense mesh.

    A face is hit only if the dot product of its normal and the point's normal is positive. Points without a hit do not
    move. Their face and barycentric weights are those of the nearest vertex of the mesh.

    Args:
        tree: bounding volume hierarchy of `dense`.
        dense: mesh with many faces.
        cage: maximum distance in world units.

    Returns:
        The moved points, and for each its face, the barycentric weights in this face, and whether there was a hit.
    """
    face, bary, distance = rays.nearest_along(tree, points, normals, cage)
    hit = face >= 0
    moved = points + np.where(hit, distance, 0)[:, None] * normals
    missed = np.flatnonzero(~hit)
    if len(missed):
        _, nearest = cKDTree(dense.vertices).query(points[missed])
        owner = np.zeros(len(dense.vertices), np.int64)
        corner = np.zeros(len(dense.vertices), np.int64)
        for k in range(3):
            owner[dense.faces[:, k]], corner[dense.faces[:, k]] = np.arange(len(dense.faces)), k
        face[missed], bary[missed] = owner[nearest], np.eye(3, dtype=np.float32)[corner[nearest]]
    return Projected(moved.astype(np.float32), face, bary, hit)


def tangent_space(directions: Array, texels: Texels) -> Array:
    """Convert unit directions (N, 3) from world space to the tangent space of N texels; return unit vectors (x, y, z).

    `texels` has for each of the N texels (texture pixels) a unit tangent t, a unit normal n and a sign. x t + y b + z n
    is parallel to the direction, with b = sign * cross(n, t); t and n need not be orthogonal. Directions below the
    surface are moved to just above it.
    """
    normal, tangent = texels.normals, texels.tangents
    bitangent = np.cross(normal, tangent) * texels.signs[:, None]
    cosine = (tangent * normal).sum(axis=1)
    along, up = (directions * tangent).sum(axis=1), (directions * normal).sum(axis=1)
    determinant = np.maximum(1 - cosine**2, 1e-6)
    x, z = (along - cosine * up) / determinant, (up - cosine * along) / determinant
    y = (directions * bitangent).sum(axis=1) / determinant
    return unit(np.stack([x, y, np.maximum(z, 0.01)], axis=1)).astype(np.float32)
