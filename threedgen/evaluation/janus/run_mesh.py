"""Renders the field of a run as if it were a mesh, without the mesh that was made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.export.run_field import open_field
from threedgen.export.surface.pictures import Pictures, field_pictures
from threedgen.geometry.cameras import Cameras, Projection

from .coloured_mesh import Array

FAINT = 0.1
"""A field whose opacity is below this in every pixel shows nothing."""


@dataclass(frozen=True)
class RunField:
    """``draw`` gives colours and opacity (see ``export/surface/pictures.py``); ``folder`` is that of its run."""

    draw: Pictures
    folder: Path
    plain = False

    def render(self, c2w: Array, fov: float, size: int, background: float = 0.5, light: bool = False) -> Array:
        """(V, size, size, 3) in [0, 1] from c2w (V, 4, 4), unlit always. Raises ConfigError if nothing is there."""
        pose = torch.from_numpy(np.asarray(c2w, np.float32))
        projection = Projection.perspective(torch.full((len(pose),), fov), size, size)
        colours, opacity = self.draw(Cameras(pose, projection, size, size))
        if opacity.max() < FAINT:
            raise ConfigError(f"{self.folder} is empty: its field shows nothing")
        there = opacity[..., None]
        views: Array = colours * there + background * (1 - there)
        return views


def run_field(folder: Path) -> RunField:
    """The field in the newest checkpoint of the run in ``folder``. Raises ConfigError if there is none that fits."""
    config, field, occupancy, _ = open_field(folder)
    return RunField(field_pictures(field, occupancy, config.march), folder)
