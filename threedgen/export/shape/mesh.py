"""Meshes with vertex colours or UVs: data classes, placement on the ground in metres, vertex normals, tangents."""

from dataclasses import dataclass, field, replace

import numpy as np

from threedgen.export.shape.topology import area_vectors
from threedgen.geometry.raster import unit
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree


@dataclass(frozen=True)
class Mesh:
    """Closed triangle mesh with vertex colours and normals, in world axes (z up, front +x) and world units.

    It has `vertices` (V, 3), `faces` (F, 3), `colours` (V, 3) in sRGB in [0, 1], and outward unit `normals` (V, 3).
    """

    vertices: Array  # (V, 3) float32
    faces: Array  # (F, 3) int32, counter-clockwise seen from outside
    colours: Array  # (V, 3) float32, sRGB in [0, 1]
    normals: Array  # (V, 3) float32, unit, outward
    info: Tree = field(default_factory=dict)  # statistics of the extraction, by name, for the glTF extras


@dataclass(frozen=True)
class TexturedMesh:
    """Triangle mesh with UVs, normals and tangents, z up, front +x. A vertex on a UV seam is stored once per side.

    It has `vertices` (V, 3), `faces` (F, 3), unit `normals` (V, 3), `uv` (V, 2) with v upwards, and `tangents` (V, 4):
    a unit vector along +u, and a sign w, where the bitangent is w * cross(normal, tangent). `offset` is the world
    position of the vertices' origin.
    """

    vertices: Array  # (V, 3) float32
    faces: Array  # (F, 3) int32, counter-clockwise seen from outside
    normals: Array  # (V, 3) float32, unit
    uv: Array  # (V, 2) float32 in [0, 1], v upwards: texture row = (1 - v) * height
    tangents: Array  # (V, 4) float32: unit vector along +u, and sign w; bitangent = w * cross(normal, tangent)
    offset: tuple[float, ...] = (0.0, 0.0, 0.0)  # world position of the vertices' origin; translation in the GLB


def placement(vertices: Array, height: float | None = None) -> tuple[Array, float]:
    """Return pivot (3,) and scale of the transform x' = scale * (x - pivot) that puts vertices (V, 3) on the ground.

    The lowest point moves to z = 0, and the centre of the bounding box onto the z axis. `height` is the size along z
    after the transform, in metres; None: the scale is 1.
    """
    low, high = vertices.min(axis=0).astype(np.float64), vertices.max(axis=0).astype(np.float64)
    pivot = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    return pivot, 1.0 if height is None else height / max(float(high[2] - low[2]), 1e-30)


def placed(mesh: TexturedMesh, pivot: Array, scale: float) -> TexturedMesh:
    """Return `mesh` with the vertices scale * (vertices - pivot). Normals, tangents and UVs are unchanged."""
    points = (mesh.vertices.astype(np.float64) - pivot) * scale
    return replace(mesh, vertices=points.astype(np.float32))


def vertex_normals(vertices: Array, faces: Array) -> Array:
    """Return unit vertex normals (V, 3) float32: the area-weighted mean of the adjacent face normals.

    Takes vertices (V, 3) and faces (F, 3), counter-clockwise seen from outside. A vertex whose mean is zero gets (0, 0,
    1).
    """
    twice_area = area_vectors(vertices, faces)
    total = np.zeros((len(vertices), 3))
    for k in range(3):
        _add(total, faces[:, k], twice_area)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    up = np.array([0.0, 0.0, 1.0])
    return np.where(length > 0, total / np.maximum(length, 1e-30), up).astype(np.float32)


def vertex_tangents(vertices: Array, faces: Array, normals: Array, uv: Array) -> Array:
    """Return tangents (V, 4) float32 for normal maps, compatible with MikkTSpace.

    Takes vertices (V, 3), faces (F, 3), unit normals (V, 3), and uv (V, 2) with v upwards. A tangent (x, y, z, w) is a
    unit vector along +u, perpendicular to the normal, and a sign w = +1 or -1. The green channel of a normal map is
    along w * cross(normal, tangent), as in the "+Y up" normal maps of glTF and in Blender, Unity and Unreal.

    Faces without UV area are ignored. A vertex that has only such faces gets any perpendicular vector, and w = 1.
    """
    points, normals, uv = (part.astype(np.float64) for part in (vertices, normals, uv))
    e1, e2 = (points[faces[:, k]] - points[faces[:, 0]] for k in (1, 2))
    d1, d2 = (uv[faces[:, k]] - uv[faces[:, 0]] for k in (1, 2))
    sign = np.sign(d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0])  # of the face's area in the texture
    along = (e1 * d2[:, 1:] - e2 * d1[:, 1:]) * sign[:, None]
    total = np.zeros((len(points), 3))
    signs = np.zeros(len(points))
    for k in range(3):
        corner = faces[:, k]
        normal = normals[corner]
        sides = (unit(_flatten(points[faces[:, (k + other) % 3]] - points[corner], normal)) for other in (1, 2))
        angle = np.arccos(np.clip(np.multiply(*sides).sum(axis=1), -1, 1))
        _add(total, corner, unit(_flatten(along, normal)) * angle[:, None])
        signs += np.bincount(corner, sign * angle, len(points))
    tangent = unit(_flatten(total, normals))
    undefined = np.linalg.norm(tangent, axis=1) < 0.5
    farthest_axis = np.eye(3)[np.abs(normals[undefined]).argmin(axis=1)]
    tangent[undefined] = unit(np.cross(normals[undefined], farthest_axis))
    return np.column_stack([tangent, np.where(signs < 0, -1.0, 1.0)]).astype(np.float32)


def _add(total: Array, index: Array, vectors: Array) -> None:
    # total[index] += vectors, for repeated indices; faster than np.add.at
    for axis in range(3):
        total[:, axis] += np.bincount(index, vectors[:, axis], len(total))


def _flatten(vectors: Array, normals: Array) -> Array:
    # component perpendicular to unit normals
    return vectors - normals * (vectors * normals).sum(axis=1, keepdims=True)
