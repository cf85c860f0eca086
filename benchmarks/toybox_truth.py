"""Toybox objects as ground truth for assets: fused surface, true colours and normals, and renders without shading."""

from functools import cached_property

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional as F

from threedgen.export.shape.from_field import FieldView
from threedgen.export.shape.topology import area_vectors
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.raster import unit
from threedgen.run.arrays import Array
from threedgen.toybox.world.grammar import Spec, sample_colour
from threedgen.toybox.world.primitives import inside
from threedgen.toybox.world.toybox import build

from .mesh_render import render

SEGMENTS, SAMPLES = 64, 200_000  # sides of circles in the mesh; number of points sampled on the solids
DENSITY = 200.0  # density inside the solids, per world unit
CLEARANCE = 1e-3  # a sample this far outside its solid, in world units, is on the surface of the object


class Truth:
    """Toybox object of the class `noun` in a random colour, as overlapping solids and as a field.

    `resolution` is the number of cells per edge of the field's grid. `seed` and `noun` determine the object.
    """

    def __init__(self, noun: str, resolution: int, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, len(noun), *noun.encode()])
        self.asset = build(Spec(noun, sample_colour(rng)), rng)
        self.resolution = resolution
        self.vertices, self.faces, self.colours, _ = self.asset.mesh(SEGMENTS)

    @cached_property
    def samples(self) -> tuple[Array, Array]:
        """Random points (N, 3) on the outer surface, and for each the index (N,) of the face of the solids."""
        rng, vectors = np.random.default_rng(0), area_vectors(self.vertices, self.faces)
        area = np.linalg.norm(vectors, axis=1)
        face = rng.choice(len(area), SAMPLES, p=area / area.sum())
        points = (self.vertices[self.faces[face]] * rng.dirichlet((1, 1, 1), SAMPLES)[..., None]).sum(1)
        outer = ~inside(self.asset.primitives, points + CLEARANCE * unit(vectors)[face])
        return points[outer], face[outer]

    @cached_property
    def normals(self) -> Array:
        """Unit face normals (F, 3) of the solids."""
        return unit(area_vectors(self.vertices, self.faces))

    @cached_property
    def tree(self) -> cKDTree:
        return cKDTree(self.samples[0])

    def nearest_face(self, points: Array) -> Array:
        """Return the index (N,) of the face of the solids that is nearest to each of the points (N, 3)."""
        return self.samples[1][self.tree.query(points)[1]]

    def view(self) -> FieldView:
        """Return the field of the object: constant density inside the solids, and the colour of the nearest solid."""
        axis = (np.arange(2 * self.resolution) + 0.5) / self.resolution - 1
        full = np.zeros((len(axis),) * 3, bool)
        for solid in self.asset.primitives:  # at the points in its bounding box
            half = np.abs(solid.matrix).sum(1) * max(1.0, solid.param)
            ends = np.searchsorted(axis, np.stack([solid.centre - half, solid.centre + half])).T
            block = full[tuple(slice(*end) for end in ends)]
            grid = np.meshgrid(*(axis[slice(*end)] for end in ends), indexing="ij")
            block |= inside([solid], np.stack(grid, -1).reshape(-1, 3)).reshape(block.shape)
        share = F.avg_pool3d(torch.from_numpy(full)[None, None].float(), 2)

        def density(x: Tensor) -> Tensor:  # grid_sample expects the last axis first
            return DENSITY * F.grid_sample(share, x.flip(-1).view(1, -1, 1, 1, 3), align_corners=False).view(-1)

        def colour(x: Tensor) -> Tensor:
            return torch.from_numpy(self.colours[self.nearest_face(x.numpy())]).float()

        return FieldView(density, colour)

    def render(self, cameras: Cameras) -> tuple[Array, Array]:
        """Render the colours without shading; return images (N, h, w, 3) over grey and opacities (N, h, w)."""
        corners = np.repeat(self.colours[:, None], 3, axis=1).astype(np.float32)
        fov = 2 * np.arctan(0.5 * cameras.height / cameras.projection.K[:, 1, 1].numpy())
        made = render(self.vertices, self.faces, cameras.c2w.numpy(), fov, cameras.height, corners, background=0.5)
        return made.rgb, made.alpha
