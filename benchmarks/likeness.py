"""Does the asset look like the field it was made of? Pictures of both from all around, side by side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threedgen.export.surface.pictures import Pictures
from threedgen.geometry.images import psnr
from threedgen.geometry.raster import render
from threedgen.geometry.rigs import orbit

Array = NDArray[Any]

ELEVATION, FOV, DISTANCE = math.radians(15), math.radians(40), 2.6
"""Those of the turntable of a run; the distance in radii of the field."""
OPAQUE = 0.95


def likeness(
    pictures: Pictures,
    radius: float,
    vertices: Array,
    faces: Array,
    uv: Array,
    textures: dict[str, Array],
    views: int,
    pixels: int,
) -> dict[str, float]:
    """Figures over `views` cameras of the turntable, `pixels` wide: the mean IoU of the outlines, and for each of the
    textures (T, T, 3) in [0, 1] the PSNR of the whole pictures on white, and inside: where mesh and field are opaque.

    vertices (V, 3) in the field's world, uv (V, 2), v up. Keys: outline, `whole NAME`, `inside NAME`.
    """
    cameras = orbit(views, ELEVATION, DISTANCE * radius, FOV, pixels, pixels)
    colours, opacity = pictures(cameras)
    field = colours * opacity[..., None] + 1 - opacity[..., None]
    figures: dict[str, float] = {}
    for name, texture in textures.items():
        seen = render(vertices, faces, cameras.c2w.numpy(), FOV, pixels, uv=uv, texture=texture)
        inside = (seen.alpha == 1) & (opacity >= OPAQUE)
        figures[f"whole {name}"] = psnr(seen.rgb, field)
        figures[f"inside {name}"] = psnr(seen.rgb[inside], colours[inside]) if inside.any() else -math.inf
        here, there = seen.alpha >= 0.5, opacity >= 0.5
        both, either = (here & there).sum(axis=(1, 2)), (here | there).sum(axis=(1, 2))
        figures["outline"] = float(np.mean(both / np.maximum(either, 1)))
    return figures
