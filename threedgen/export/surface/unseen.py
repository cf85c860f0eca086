"""Recolour texels that no training camera sees, such as an object's underside.

The field's colour there comes from the initialisation, not from training. Such texels get colours that are diffused
over the surface from their surroundings (complete.py).
"""

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
"""Number of camera elevations, number of cameras per elevation, and image edge in pixels."""
MIN_COSINE, MIN_SHARE = 0.2, 0.2
"""Minimum cosine between a face's normal and the direction to the camera, and minimum fraction of cameras that see a
visible face. About 0.4 of the cameras see an unobstructed side, and 0.3 see an unobstructed top. Faces below 0.2, such
as those between legs or in folds, are hardly trained."""


def visible_faces(mesh: TexturedMesh, elevations: tuple[float, float], radius: float = 1.0) -> Array:
    """Return the mask (F,) of mesh faces that enough of the training cameras see.

    elevations: lowest and highest camera elevation in degrees; radius: scene radius in world units.
    """
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
    """Recolour the texels of faces where `visible` (F,) is False with colours from their surroundings.

    Takes a texture (H, W, 3) with row 0 at v = 1. Returns the new texture (H, W, 3) and the fraction of covered texels
    on invisible faces. If no face is visible, the texture is unchanged.
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
