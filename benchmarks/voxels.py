"""A shape's field on a grid: as quick to ask as a real one, and its pictures are the same field's."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.export.shape.from_field import FieldView
from threedgen.export.surface.pictures import field_pictures
from threedgen.representations.march import step_size
from threedgen.representations.options import MarchConfig, OccupancyConfig
from threedgen.representations.volume.occupancy import OccupancyGrid

from .creature import Creature

MARCH = MarchConfig(samples=256, early_stop=1e-3)
CELLS, EMPTY = 64, 0.05
"""Cells along an edge of the grid that skips space, and the density that counts as none."""


class Voxels:
    """Density and colour at linspace(-1, 1, resolution)^3, trilinear between; sigma (1, 1, R, R, R) is [x, y, z]."""

    rasterised = False

    def __init__(self, creature: Creature, resolution: int) -> None:
        axis = torch.linspace(-1, 1, resolution)
        y, z = (c.reshape(-1) for c in torch.meshgrid(axis, axis, indexing="ij"))
        self.sigma = torch.empty(1, 1, *(resolution,) * 3)
        self.rgb = torch.empty(1, 3, *(resolution,) * 3)
        for k, x in enumerate(axis):
            points = torch.stack([x.expand_as(y), y, z], dim=1)
            self.sigma[0, 0, k] = creature.density(points).view(resolution, resolution)
            self.rgb[0, :, k] = creature.colour(points).T.view(3, resolution, resolution)

    def density(self, x: Tensor) -> Tensor:
        """sigma (N,) of points (N, 3)."""
        return _read(self.sigma, x)[:, 0]

    def colour(self, x: Tensor) -> Tensor:
        """sRGB (N, 3)."""
        return _read(self.rgb, x)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Density and features, as a representation tells them: the sigmoid of the features is the colour."""
        return self.density(x), torch.logit(self.colour(x), eps=1e-4)

    def parameters(self) -> Iterable[Tensor]:
        """Nothing is learned here."""
        return ()

    def view(self) -> FieldView:
        """As what a mesh is made of, with a renderer that skips what is empty."""
        skip = OccupancyGrid(OccupancyConfig(resolution=CELLS), 1.0, step_size(MARCH))
        fullest = F.max_pool3d(F.adaptive_max_pool3d(self.sigma, CELLS), 3, 1, 1)  # a margin: cells share their points
        skip.binary.copy_(fullest[0, 0] > EMPTY)
        return FieldView(self.density, self.colour, 1.0, pictures=field_pictures(self, skip, MARCH))


def _read(volume: Tensor, x: Tensor) -> Tensor:
    """Values (N, C) of a volume (1, C, X, Y, Z) at points (N, 3) of [-1, 1]^3."""
    where = x.flip(-1).view(1, -1, 1, 1, 3)  # torch names the axes from the last
    return F.grid_sample(volume, where, align_corners=True, padding_mode="border")[0, :, :, 0, 0].T
