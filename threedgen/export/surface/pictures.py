"""Render a field without light from all around. The renders are the targets of the texture refinement."""

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
"""Function of V cameras; returns sRGB (V, H, W, 3) in [0, 1], not premultiplied by opacity, and opacities (V, H, W)."""

CHUNK = 1 << 19
"""Maximum number of ray samples that are evaluated at once."""
FOV, DISTANCE = math.radians(40), 3.0
"""Vertical field of view in radians, and camera distance in scene radii; images show the whole scene sphere."""
MIN_ELEVATION, MAX_ELEVATION = math.radians(-40), math.radians(75)


def spiral_cameras(views: int, size: int, radius: float = 1.0) -> Cameras:
    """Return perspective cameras on a golden-angle spiral, evenly distributed between MIN_ELEVATION and MAX_ELEVATION.

    `views` is the number of cameras, `size` the image edge in pixels, `radius` the scene radius in world units.
    """
    k = torch.arange(views, dtype=torch.float32)
    height = math.sin(MIN_ELEVATION) + (math.sin(MAX_ELEVATION) - math.sin(MIN_ELEVATION)) * (k + 0.5) / views
    elevation, azimuth = torch.asin(height), (k * math.pi * (3 - math.sqrt(5))) % (2 * math.pi)
    distance = torch.full((views,), DISTANCE * radius)
    projection = Projection.perspective(torch.full((views,), FOV), size, size)
    return Cameras(orbit_c2w(elevation, azimuth, distance), projection, size, size)


def image_size(texels: int) -> int:
    """Return the image edge in pixels for a texture edge of `texels`: a quarter of it, within [64, 512]."""
    return min(max(texels // 4, 64), 512)


def field_renderer(
    field: Any, occupancy: Any, options: MarchConfig, device: torch.device | str = "cpu"
) -> ViewRenderer:
    """Return a renderer of `field` without light, background or gradients.

    Volumes are ray-marched (representations/volume/render.py) with `options` and the optional occupancy grid;
    rasterised representations render themselves. Images are computed on `device`.
    """
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
