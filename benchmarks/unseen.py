"""Measure the colour errors of texels that no training camera sees, on toybox objects whose colours are known.

Two textures are measured, after their unseen texels were filled. "export" is like the texture of a field: it has the
true colours where the training cameras look, and wrong colours elsewhere. "views" is projected from images. The error
is the mean Lab distance to the true colours, over the unseen texels that are visible from below.
"""

import time
from statistics import mean

import numpy as np
import torch
from skimage.color import rgb2lab

from threedgen.export.renders import cameras_at
from threedgen.export.shape.from_field import dense_surface
from threedgen.export.shape.simplify import simplify
from threedgen.export.shape.unwrap import unwrap
from threedgen.export.surface.bake import texel_frames, with_dense_normals
from threedgen.export.surface.from_views import texture_from_views
from threedgen.export.surface.unseen import fill_unseen, visible_texels
from threedgen.geometry.raster import rasterise_uv
from threedgen.geometry.texture import fill
from threedgen.run.arrays import Array
from threedgen.systems.texture.mesh_views import MeshViews

from .table import Row, Table
from .toybox_truth import Truth

NOUNS = (
    "car tractor truck bus tank train airplane dog cat horse elephant pig rabbit duck chair bed house teapot robot boat"
).split()
RESOLUTION, TRIANGLES, TEXTURE = 96, 3000, 256
ELEVATIONS, BELOW, TRAINED = (0.0, 30.0), -45.0, 0.1
"""Range of elevations of the training cameras, and elevation of cameras below the object, in degrees; minimum fraction
of the training cameras that must see a texel for its colour to be trained."""
VIEWS, PIXELS = 12, 128


def measure(noun: str) -> Row:
    """Return the mean Lab errors of the unseen texels of an object, and the CPU time in seconds of filling them."""
    truth = Truth(noun, RESOLUTION)
    dense, _ = dense_surface(truth.view(), RESOLUTION)
    low = with_dense_normals(unwrap(*simplify(dense.vertices, dense.faces, TRIANGLES, nearest=True), TEXTURE)[0], dense)
    buffers = rasterise_uv(low.uv, low.faces, TEXTURE)
    points, normals, *_ = texel_frames(low, buffers)
    colours = truth.colours[truth.nearest_face(points)].astype(np.float32)
    share = visible_texels(low, points, normals, ELEVATIONS)
    scored = (share == 0) & (visible_texels(low, points, normals, (BELOW, BELOW)) > 0)
    untrained = 0.5 + 0.2 * np.sin(9 * points @ np.array([[1, 0.3, -0.5], [-0.4, 1, 0.2], [0.6, -0.2, 1]]))
    texture = np.zeros((TEXTURE, TEXTURE, 3), np.float32)
    texture[buffers.mask] = np.where(share[:, None] >= TRAINED, colours, untrained)

    def error(made: Array) -> float:
        difference = rgb2lab(made[buffers.mask][scored]) - rgb2lab(colours[scored])
        return float(np.linalg.norm(difference, axis=-1).mean())

    start = time.process_time()
    filled, _ = fill_unseen(fill(texture, buffers.mask), low, ELEVATIONS)
    seconds = time.process_time() - start
    elevation = torch.deg2rad(torch.linspace(*ELEVATIONS, 2)).repeat(VIEWS // 2)
    cameras = cameras_at(elevation, torch.arange(VIEWS) * (2 * torch.pi / VIEWS), PIXELS, 1.0)
    images, masks = truth.render(cameras)
    views = MeshViews(images, cameras, masks)
    projected = texture_from_views(low, TEXTURE, cameras, images, views.blend, masks=masks).texture
    return {"object": noun, "export, Lab": error(filled), "views, Lab": error(projected), "export, CPU s": seconds}


def table() -> Table:
    """Return a table with a row per object, and a row with the means over the objects."""
    rows = [measure(noun) for noun in NOUNS]
    means: Row = {key: mean(float(row[key]) for row in rows) for key in rows[0] if key != "object"}
    return Table("Lab error of texels that no camera saw", [*rows, {"object": "mean"} | means])
