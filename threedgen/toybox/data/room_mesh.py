"""Triangle mesh of the inside of a toy room, in metres, and its export as a GLB file with vertex colours."""

from typing import Any

import numpy as np

from threedgen.geometry.images import to_linear
from threedgen.run.arrays import Array
from threedgen.toybox.world.rooms import HALF_WIDTH, HEIGHT, Room

THICKNESS = 0.01
"""Distance in metres behind walls, floor and ceiling up to which triangles belong to the inside of a room."""


def room_triangles(room: Room, segments: int = 24) -> tuple[Array, Array, Array]:
    """Return the T triangles of a room without the outer sides of walls, floor and ceiling. Round solids have
    ``segments`` sides.

    Returns:
        Corners (T, 3, 3) in metres, sRGB colours (T, 3), and labels (T,) with the meaning of those of ``render_rooms``.
    """
    vertices, faces, colours, labels = room.asset.mesh(segments)
    corners = vertices[faces]
    low, high = (
        np.array([-HALF_WIDTH, -HALF_WIDTH, 0]) - THICKNESS,
        np.array([HALF_WIDTH, HALF_WIDTH, HEIGHT]) + THICKNESS,
    )
    middle = corners.mean(1)
    inside = ((middle > low) & (middle < high)).all(1)
    return corners[inside], colours[inside], labels[inside]


def room_glb(room: Room, segments: int = 24) -> bytes:
    corners, colours, _ = room_triangles(room, segments)
    return glb(corners, colours)


def glb(corners: Array, colours: Array) -> bytes:
    """Encode z-up triangles (T, 3, 3) with sRGB colours (T, 3) as a y-up GLB. Triangles share no vertices."""
    import trimesh

    rgba = np.pad(np.round(to_linear(colours) * 255).astype(np.uint8), ((0, 0), (0, 1)), constant_values=255)
    mesh = trimesh.Trimesh(
        corners.reshape(-1, 3)[:, [1, 2, 0]],
        np.arange(3 * len(corners)).reshape(-1, 3),
        vertex_colors=np.repeat(rgba, 3, axis=0),
        process=False,
    )
    data: Any = mesh.export(file_type="glb")
    return bytes(data)
