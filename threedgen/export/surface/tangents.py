"""Compute per-vertex tangents compatible with MikkTSpace.

v runs UPWARDS here, although v runs downwards in glTF. The bitangent sign then matches the "+Y up" normal maps of glTF
and the tangents that Blender, Unity and Unreal compute.
"""

import numpy as np

from threedgen.geometry.raster import unit
from threedgen.run.arrays import Array


def vertex_tangents(vertices: Array, faces: Array, normals: Array, uv: Array) -> Array:
    """Return tangents (V, 4) float32: a unit vector along +u, perpendicular to the normal, and the bitangent sign w.

    Takes vertices (V, 3), faces (F, 3), unit normals (V, 3), and uv (V, 2) with v upwards. The sign w is +1 or -1; the
    bitangent w * cross(normal, tangent) is the direction of a normal map's green channel. Faces without UV area are
    ignored. A vertex with no other face gets any direction perpendicular to its normal, and w = 1.
    """
    normals = normals.astype(np.float64)
    along, sign = _face_tangents(vertices.astype(np.float64), faces, uv.astype(np.float64))
    total = np.zeros((len(vertices), 3))
    signs = np.zeros(len(vertices))
    for k in range(3):
        corner = faces[:, k]
        normal = normals[corner]
        tangent = unit(along - normal * (along * normal).sum(axis=1, keepdims=True))
        angle = _corner_angle(vertices, faces, k, normal)
        for axis in range(3):
            total[:, axis] += np.bincount(corner, tangent[:, axis] * angle, len(vertices))
        signs += np.bincount(corner, sign * angle, len(vertices))
    tangent = unit(total - normals * (total * normals).sum(axis=1, keepdims=True))
    undefined = np.linalg.norm(tangent, axis=1) < 0.5
    farthest_axis = np.eye(3)[np.abs(normals[undefined]).argmin(axis=1)]
    tangent[undefined] = unit(np.cross(normals[undefined], farthest_axis))
    return np.column_stack([tangent, np.where(signs < 0, -1.0, 1.0)]).astype(np.float32)


def _face_tangents(vertices: Array, faces: Array, uv: Array) -> tuple[Array, Array]:
    """Return the direction of +u on each face (F, 3), not normalised, and the sign of the face's UV area (F,)."""
    e1, e2 = (vertices[faces[:, k]] - vertices[faces[:, 0]] for k in (1, 2))
    d1, d2 = (uv[faces[:, k]] - uv[faces[:, 0]] for k in (1, 2))
    sign = np.sign(d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0])
    return (e1 * d2[:, 1:] - e2 * d1[:, 1:]) * sign[:, None], sign


def _corner_angle(vertices: Array, faces: Array, k: int, normal: Array) -> Array:
    """Return the angle (F,) in radians at corner k of each face, in the plane perpendicular to `normal` (F, 3)."""
    corner = vertices[faces[:, k]].astype(np.float64)
    sides = []
    for other in (1, 2):
        side = vertices[faces[:, (k + other) % 3]] - corner
        sides.append(unit(side - normal * (side * normal).sum(axis=1, keepdims=True)))
    return np.arccos(np.clip((sides[0] * sides[1]).sum(axis=1), -1, 1))
