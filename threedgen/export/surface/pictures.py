"""Unlit renders of a field from all around: targets for the texture of its asset."""

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

ViewRenderer = Callable[[Cameras], tuple[Array, Array]]
"""Renderer: V cameras -> colours (V, H, W, 3) in [0, 1], not premultiplied, and opacities (V, H, W)."""

CHUNK = 1 << 19
"""Samples per rendering chunk."""
FOV, DISTANCE = math.radians(40), 3.0
"""Field of view, and camera distance in scene radii; the whole scene sphere is visible."""
MIN_ELEVATION, MAX_ELEVATION = math.radians(-40), math.radians(75)


def spiral_cameras(views: int, size: int, radius: float = 1.0) -> Cameras:
    """Return cameras on a golden-angle spiral from below to above, evenly distributed over the sphere."""
    k = torch.arange(views, dtype=torch.float32)
    height = math.sin(MIN_ELEVATION) + (math.sin(MAX_ELEVATION) - math.sin(MIN_ELEVATION)) * (k + 0.5) / views
    elevation, azimuth = torch.asin(height), (k * math.pi * (3 - math.sqrt(5))) % (2 * math.pi)
    distance = torch.full((views,), DISTANCE * radius)
    projection = Projection.perspective(torch.full((views,), FOV), size, size)
    return Cameras(orbit_c2w(elevation, azimuth, distance), projection, size, size)


def image_size(texels: int) -> int:
    """Return a suitable image edge in pixels for a texture edge of `texels`."""
    return min(max(texels // 4, 64), 512)


def field_renderer(
    field: Any, occupancy: Any, options: MarchConfig, device: torch.device | str = "cpu"
) -> ViewRenderer:
    """Return a renderer of `field` (see representations/volume/render.py) without light, background or gradients."""
    background, material = SolidBackground().to(device), NoMaterial()

    @torch.no_grad()
    def render_views(cameras: Cameras) -> tuple[Array, Array]:
        shape = (len(cameras), cameras.height, cameras.width)
        rgb, opacity = np.empty((*shape, 3), np.float32), np.empty(shape, np.float32)
        for k in range(len(cameras)):
            camera = cameras.select([k])
            if field.rasterised:
                result = field.render(camera, background, material)
            else:
                rays = (ray.reshape(-1, 3).to(device) for ray in camera.rays())
                result = render(field, background, material, occupancy, options, *rays, chunk=CHUNK)
            colours = (result.rgb_fg / result.opacity.clamp(min=1e-3)).clamp(0, 1)
            rgb[k] = colours.view(*shape[1:], 3).cpu().numpy()
            opacity[k] = result.opacity.view(shape[1:]).cpu().numpy()
        return rgb, opacity

    return render_views
