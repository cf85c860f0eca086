"""Recolour texels that no training camera sees, such as an object's underside.

The field's colour there is untrained, left over from initialisation. Such texels get the surrounding colours (see
complete.py).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.topology import area_vectors, pieces, weld
from threedgen.export.surface.complete import SurfacePoints, diffuse_colours
from threedgen.export.surface.pictures import DISTANCE, FOV
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w
from threedgen.geometry.raster import interpolate, rasterise_uv, rasterise_views, unit
from threedgen.geometry.texture import fill
from threedgen.run.arrays import Array

N_ELEVATIONS, N_AZIMUTHS, IMAGE_SIZE = 3, 12, 384
"""Camera elevations, cameras per elevation, and image edge in pixels."""
MIN_COSINE, MIN_SHARE = 0.2, 0.2
"""Minimum viewing cosine, and minimum fraction of cameras, for a visible face. About 0.4 of the cameras see an open
side, 0.3 an open top; faces below 0.2, between legs or in folds, are hardly trained."""


def visible_faces(mesh: TexturedMesh, elevations: tuple[float, float], radius: float = 1.0) -> Array:
    """Return the mask (F,) of faces that cameras around a scene of `radius`, at elevations in degrees, see well."""
    elevation, azimuth = torch.meshgrid(
        torch.linspace(math.radians(elevations[0]), math.radians(elevations[1]), N_ELEVATIONS),
        torch.arange(N_AZIMUTHS) * (2 * math.pi / N_AZIMUTHS),
        indexing="ij",
    )
    c2w = orbit_c2w(elevation.flatten(), azimuth.flatten(), torch.full((N_ELEVATIONS * N_AZIMUTHS,), DISTANCE * radius))
    projection = Projection.perspective(torch.full((len(c2w),), FOV), IMAGE_SIZE, IMAGE_SIZE)
    normals, middle = unit(area_vectors(mesh.vertices, mesh.faces)), mesh.vertices[mesh.faces].mean(axis=1)
    cameras, count = Cameras(c2w, projection, IMAGE_SIZE, IMAGE_SIZE), np.zeros(len(mesh.faces))
    for k in range(len(cameras)):  # one by one: the buffers of all would be large
        camera = cameras.select([k])
        buffers = rasterise_views(mesh.vertices, mesh.faces, camera)
        faces = np.unique(buffers.face[buffers.mask])
        toward = unit(camera.position[0].numpy() - middle[faces])
        count[faces] += (toward * normals[faces]).sum(axis=1) >= MIN_COSINE
    visible: Array = count >= MIN_SHARE * len(cameras)
    return visible


def fill_unseen(texture: Array, mesh: TexturedMesh, visible: Array) -> tuple[Array, float]:
    """Recolour faces where `visible` (F,) is False from their surroundings; a mesh without visible face is unchanged.

    Returns the texture (H, W, 3), and the recoloured fraction of the covered texels.
    """
    buffers = rasterise_uv(mesh.uv, mesh.faces, (texture.shape[0], texture.shape[1]))
    face = buffers.face[buffers.mask]
    known = visible[face]
    if known.all() or not known.any():
        return texture, float(1 - known.mean())
    vertices, faces, _ = weld(mesh.vertices, mesh.faces)
    normals = unit(area_vectors(mesh.vertices, mesh.faces)).astype(np.float32)
    points = interpolate(mesh.vertices, mesh.faces, buffers)[buffers.mask]
    at = SurfacePoints(points, normals[face], pieces(faces, len(vertices))[face])
    result = texture.copy()
    result[buffers.mask] = diffuse_colours(at, texture[buffers.mask], known)
    return fill(result, buffers.mask), float(1 - known.mean())
