"""The triangles of a toy room as a GLB: what one sees from inside, in metres, colours at the vertices, no UVs."""

from __future__ import annotations

from typing import Any

import numpy as np

from threedgen.geometry.images import to_linear
from threedgen.run.arrays import Array

from .rooms import HALF, HEIGHT, Room

THICKNESS = 0.01
"""Metres behind walls, floor and ceiling up to which a triangle still belongs to the inside."""


def room_triangles(room: Room, segments: int = 24) -> tuple[Array, Array, Array]:
    """Corners (T,3,3) in the world of the room, sRGB colours (T,3) and labels (T,) as ``rooms.view`` has them.

    The solids are whole, so they overlap; of the shell there are only the inner sides. Round solids have ``segments``
    around a full turn.
    """
    vertices, faces, colours, labels = room.asset.mesh(segments)
    corners = vertices[faces]
    low, high = np.array([-HALF, -HALF, 0]) - THICKNESS, np.array([HALF, HALF, HEIGHT]) + THICKNESS
    middle = corners.mean(1)
    inside = ((middle > low) & (middle < high)).all(1)
    return corners[inside], colours[inside], labels[inside]


def room_glb(room: Room, segments: int = 24) -> bytes:
    """A GLB of the inside of a room."""
    corners, colours, _ = room_triangles(room, segments)
    return glb(corners, colours)


def glb(corners: Array, colours: Array) -> bytes:
    """A GLB of triangles (T,3,3) in sRGB colours (T,3), with y up, x' = y, y' = z, z' = x, as all of this project;
    triangles share no vertex, so edges stay sharp."""
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
