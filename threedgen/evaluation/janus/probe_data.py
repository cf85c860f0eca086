"""What the meter's classifier learns beside plain toybox pictures: things as methods leave them, rough or two-faced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from threedgen.data.toybox.primitives import Asset
from threedgen.data.toybox.world import Toybox
from threedgen.evaluation.toybox.labels import OPEN, Truth

from .coloured_mesh import Array, toybox_mesh, two_fronted
from .rough import rough

ROUGHEST = 2.0
"""Strengths of ``rough`` are drawn up to this one."""
SEGMENTS = 16
"""Of a round solid: few, for many things are drawn, and they are made rough."""
CLEAR = np.deg2rad(60)
"""Two glued fronts show a side so far from either of them; further, they show two sides at once."""


def corrupt(
    box: Toybox,
    indices: Sequence[int],
    assets: Sequence[Asset],
    rgb: Array,
    truth: Truth,
    share: float,
    rng: np.random.Generator,
) -> None:
    """Draws a ``share`` of the samples ``indices`` anew, rough, and half of these that have a front with two of them.

    rgb (N n, size, size, 3), views fastest, and the truth are changed in place.
    """
    n_view, size = len(rgb) // len(assets), rgb.shape[1]
    for k, (index, asset) in enumerate(zip(indices, assets, strict=True)):
        if rng.random() >= share:
            continue
        mine, two = slice(k * n_view, (k + 1) * n_view), asset.front and rng.random() < 0.5
        mesh = toybox_mesh(asset, SEGMENTS)
        mesh = rough(two_fronted(mesh) if two else mesh, rng, rng.uniform(0, ROUGHEST))
        c2w, fov, azimuth, grey = box.cameras(index, n_view)
        rgb[mine] = mesh.render(c2w, float(fov[0]), size, grey, light=True)
        if two:
            truth.seen[mine], truth.part_colour[mine] = OPEN, OPEN
            turned, clear = nearer_front(azimuth)
            truth.azimuth[mine], truth.front[mine] = torch.from_numpy(turned), torch.from_numpy(clear)


def nearer_front(azimuth: Array) -> tuple[Array, Array]:
    """Of cameras at ``azimuth`` (V,) radians around a mesh with fronts at 0 and pi: the azimuth (V,) from the nearer
    front, and whether (V,) that is clear."""
    turned = np.where(np.cos(azimuth) < 0, azimuth + np.pi, azimuth) % (2 * np.pi)
    return turned.astype(np.float32), np.cos(turned) >= np.cos(CLEAR)
