"""Texels that no camera of the optimisation could see: nobody told the field what colour is there.

The belly of a dog, the insides of its legs, the ground side of a house: what the field says there is left over from
when it was fog. Such texels get the colours around them, as of a mesh that wears pictures (complete.py).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.topology import area_vectors, pieces, weld
from threedgen.export.surface.complete import Places, diffuse
from threedgen.export.surface.pictures import DISTANCE, FOV
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w
from threedgen.geometry.raster import interpolate, rasterise_uv, rasterise_views, unit
from threedgen.geometry.texture import fill
from threedgen.run.arrays import Array

RINGS, ON_RING, SIZE = 3, 12, 384
"""Rings of cameras over the elevations, cameras of a ring, pixels along an edge of their pictures."""
FACING, SHARE = 0.2, 0.2
"""A camera sees a face under this cosine or a larger one. So do 0.4 of them an open side, 0.3 an open top; what less
than SHARE of them see, between legs or in a fold, was hardly ever optimised."""


def seen_faces(mesh: TexturedMesh, elevations: tuple[float, float], radius: float = 1.0) -> Array:
    """Which faces (F,), bool, cameras between two elevations (degrees) see well, all around a world of this radius."""
    steep, turn = torch.meshgrid(
        torch.linspace(math.radians(elevations[0]), math.radians(elevations[1]), RINGS),
        torch.arange(ON_RING) * (2 * math.pi / ON_RING),
        indexing="ij",
    )
    c2w = orbit_c2w(steep.flatten(), turn.flatten(), torch.full((RINGS * ON_RING,), DISTANCE * radius))
    projection = Projection.perspective(torch.full((len(c2w),), FOV), SIZE, SIZE)
    normals, middle = unit(area_vectors(mesh.vertices, mesh.faces)), mesh.vertices[mesh.faces].mean(axis=1)
    cameras, count = Cameras(c2w, projection, SIZE, SIZE), np.zeros(len(mesh.faces))
    for k in range(len(cameras)):  # one by one: the buffers of all would be large
        one = cameras.select([k])
        found = rasterise_views(mesh.vertices, mesh.faces, one)
        faces = np.unique(found.face[found.mask])
        toward = unit(one.position[0].numpy() - middle[faces])
        count[faces] += (toward * normals[faces]).sum(axis=1) >= FACING
    seen: Array = count >= SHARE * len(cameras)
    return seen


def fill_unseen(texture: Array, mesh: TexturedMesh, seen: Array) -> tuple[Array, float]:
    """The texture (H, W, 3) with colours from around on the faces that are not `seen` (F,), and the share of its texels
    that these have. A mesh that nothing sees keeps what it has."""
    buffers = rasterise_uv(mesh.uv, mesh.faces, (texture.shape[0], texture.shape[1]))
    face = buffers.face[buffers.mask]
    known = seen[face]
    if known.all() or not known.any():
        return texture, float(1 - known.mean())
    vertices, faces, _ = weld(mesh.vertices, mesh.faces)
    normals = unit(area_vectors(mesh.vertices, mesh.faces)).astype(np.float32)
    points = interpolate(mesh.vertices, mesh.faces, buffers)[buffers.mask]
    at = Places(points, normals[face], pieces(faces, len(vertices))[face])
    result = texture.copy()
    result[buffers.mask] = diffuse(at, texture[buffers.mask], known)
    return fill(result, buffers.mask), float(1 - known.mean())
