"""Levels of detail that wear the textures of the first one."""

from __future__ import annotations

import numpy as np

from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.collapse import collapse
from threedgen.export.shape.topology import weld


def level(mesh: TexturedMesh, triangles: int) -> TexturedMesh:
    """The mesh with at most so many triangles, or as few as its shape and its seams allow.

    What is left of it has the places, normals, tangents and UVs that it had, so no texture has to be made anew.
    """
    points, faces, _ = weld(mesh.vertices, mesh.faces)
    _, rows = collapse(points, faces, triangles, mesh.faces, mesh.uv)
    used, number = np.unique(rows, return_inverse=True)
    return TexturedMesh(
        vertices=mesh.vertices[used],
        faces=number.reshape(-1, 3).astype(np.int32),
        normals=mesh.normals[used],
        uv=mesh.uv[used],
        tangents=mesh.tangents[used],
    )
