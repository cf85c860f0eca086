"""Renders a toybox object from a spiral of cameras, and names a fit that takes a second."""

from typing import Any

import numpy as np
import torch

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import to_uint8
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Views
from threedgen.toybox.world.raycast import render
from threedgen.toybox.world.toybox import Toybox

SIZE = 16
GRID = {"n_levels": 4, "log2_hashmap_size": 10, "base_resolution": 4, "per_level_scale": 1.6}
TINY: dict[str, Any] = {
    "name": "subsampled", "steps": 200, "rays": 512, "samples": 24, "width": 16, "orientation": 0,
    "encoding": GRID,
}  # fmt: skip


def photographs(count: int = 24, index: int = 5, turn: float = 0.0) -> Views:
    """A toybox object on white from a spiral of cameras; ``turn``: the cameras are said to be so many degrees away,
    each in its own direction."""
    at = orbit(count, 0.0, 2.6, 0.7, SIZE, SIZE)
    up = torch.linspace(0, 0.9, count)
    lift = torch.stack([orbit(count, float(e), 2.6, 0.7, SIZE, SIZE).c2w[k] for k, e in enumerate(up)])
    at = Cameras(lift, Projection(at.K), SIZE, SIZE)
    fov, which = np.full(count, 0.7), np.zeros(count, int)
    rgb = render([Toybox(3).asset(index)], which, at.c2w.numpy(), fov, SIZE, 1.0).rgb
    if turn:
        axis = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
        axis = np.deg2rad(turn) * torch.nn.functional.normalize(axis, dim=-1)
        cross = torch.zeros(count, 4, 4)
        cross[:, [2, 0, 1], [1, 2, 0]], cross[:, [1, 2, 0], [2, 0, 1]] = axis, -axis
        at = Cameras(torch.linalg.matrix_exp(cross) @ at.c2w, Projection(at.K), SIZE, SIZE)
    return Views(torch.from_numpy(to_uint8(rgb)).float() / 255, at)
