"""How an object gets two fronts: the glued halves that the meter has to find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from threedgen.data.coloured_mesh import ColouredMesh, Part, sound


def two_fronted(mesh: ColouredMesh) -> ColouredMesh:
    """Two front halves, back to back: what is in front of the middle of the bounding box, and the same turned half
    around the vertical axis, as if a painter of single views had drawn the front again from behind.

    Of a mesh that is symmetric the two cuts lie on each other, so that what is closed stays closed.
    """
    x = mesh.corners[..., 0]
    middle = (x.min() + x.max()) / 2
    halves = [half for part in mesh.parts if len((half := _front_half(part, middle)).corners)]
    turn = np.array([-1.0, -1.0, 1.0])
    behind = [replace(half, corners=half.corners * turn + [2 * middle, 0, 0]) for half in halves]
    return replace(mesh, parts=tuple(halves + behind))


def _front_half(part: Part, middle: float) -> Part:
    """What has x >= middle; triangles across are cut, and what they carry is interpolated."""
    from trimesh.intersections import slice_faces_plane

    rows, values = part.corners.reshape(-1, 3), part.values.reshape(-1, part.values.shape[-1])
    faces = np.arange(len(rows)).reshape(-1, 3)
    corners, faces, values = slice_faces_plane(rows, faces, [1, 0, 0], [middle, 0, 0], uv=values)
    return sound(replace(part, corners=corners[faces], values=values[faces]))
