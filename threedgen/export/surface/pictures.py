"""Unlit pictures of a field from all around: what the texture of its asset should look like."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.options import MarchConfig
from threedgen.representations.shading import NoMaterial
from threedgen.representations.volume.render import render
from threedgen.run.arrays import Array

Pictures = Callable[[Cameras], tuple[Array, Array]]
"""Cameras (V) -> colours (V, H, W, 3) in [0, 1] of what is there, opacities (V, H, W)"""

CHUNK = 1 << 19
"""Samples rendered at a time."""
FOV, DISTANCE = math.radians(40), 3.0
"""Angle of view, and distance in radii of the field: its whole sphere is in the picture."""
LOWEST, HIGHEST = math.radians(-40), math.radians(75)


def around(views: int, size: int, radius: float = 1.0) -> Cameras:
    """Cameras on a spiral from below to above, each a golden angle further (the views cover the sphere evenly)."""
    k = torch.arange(views, dtype=torch.float32)
    height = math.sin(LOWEST) + (math.sin(HIGHEST) - math.sin(LOWEST)) * (k + 0.5) / views
    steep, turn = torch.asin(height), (k * math.pi * (3 - math.sqrt(5))) % (2 * math.pi)
    far = torch.full((views,), DISTANCE * radius)
    projection = Projection.perspective(torch.full((views,), FOV), size, size)
    return Cameras(orbit_c2w(steep, turn, far), projection, size, size)


def pixels(texels: int) -> int:
    """How many pixels along an edge of a picture are worth it for a texture of so many texels."""
    return min(max(texels // 4, 64), 512)


def field_pictures(field: Any, occupancy: Any, options: MarchConfig, device: torch.device | str = "cpu") -> Pictures:
    """A renderer of `field` (see representations/volume/render.py) without light, background and gradients."""
    background, material = SolidBackground().to(device), NoMaterial()

    @torch.no_grad()
    def pictures(cameras: Cameras) -> tuple[Array, Array]:
        shape = (len(cameras), cameras.height, cameras.width)
        rgb, opacity = np.empty((*shape, 3), np.float32), np.empty(shape, np.float32)
        for k in range(len(cameras)):
            one = cameras.select([k])
            if field.rasterised:
                result = field.render(one, background, material)
            else:
                rays = (ray.reshape(-1, 3).to(device) for ray in one.rays())
                result = render(field, background, material, occupancy, options, *rays, chunk=CHUNK)
            colours = (result.rgb_fg / result.opacity.clamp(min=1e-3)).clamp(0, 1)
            rgb[k] = colours.view(*shape[1:], 3).cpu().numpy()
            opacity[k] = result.opacity.view(shape[1:]).cpu().numpy()
        return rgb, opacity

    return pictures
