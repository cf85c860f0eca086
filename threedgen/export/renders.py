"""Cameras around an object, unlit renders of a field, and density and colours from rendered depth images."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w
from threedgen.representations.base import Render
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.shading import Material
from threedgen.representations.volume.options import MarchConfig
from threedgen.representations.volume.render import render
from threedgen.run.arrays import Array

ViewRenderer = Callable[[Cameras], tuple[Array, Array]]
"""Function of V cameras that returns renders of a field: colours (V, H, W, 3) and opacities (V, H, W), in [0, 1].

Colours are sRGB, not premultiplied by opacity.
"""
CHUNK = 1 << 19  # maximum number of ray samples that are evaluated at once
FOV, DISTANCE = math.radians(40), 3.0
"""Vertical field of view in radians, and camera distance in scene radii. Images show the whole scene sphere."""
MIN_ELEVATION, MAX_ELEVATION = math.radians(-40), math.radians(75)
DEPTH_VIEWS, DEPTH_SIZE = 40, 128  # number of depth images and their edge in pixels
TRUNCATION = 0.05  # truncation distance, in scene radii. The density is constant farther than this from the surface.
DENSITY = 4.0  # maximum density (per world unit) multiplied by the truncation distance
EMPTY = 1 / (1 + math.exp(4))  # the sigmoid at the truncation distance; empty space has to have no density at all
OUTLIERS = 1  # number of depth images that may wrongly show a point in front of the surface


def spiral_cameras(views: int, size: int, radius: float = 1.0) -> Cameras:
    """Return `views` cameras that look at the origin, on a golden-angle spiral with elevations from -40 to 75 degrees.

    z is up. The cameras are perspective, with a vertical field of view of 40 degrees, and 3 * `radius` away from the
    origin. `radius`: radius of the scene sphere in world units. `size`: edge of the square images in pixels.
    """
    k = torch.arange(views, dtype=torch.float32)
    height = math.sin(MIN_ELEVATION) + (math.sin(MAX_ELEVATION) - math.sin(MIN_ELEVATION)) * (k + 0.5) / views
    return cameras_at(torch.asin(height), (k * math.pi * (3 - math.sqrt(5))) % (2 * math.pi), size, radius)


def cameras_at(elevation: Tensor, azimuth: Tensor, size: int, radius: float) -> Cameras:
    """Return V perspective cameras that look at the origin, at elevations and azimuths (V,) in radians.

    z is up, azimuth 0 is +x, and pi / 2 is +y. The cameras are 3 * `radius` away from the origin, with a vertical field
    of view of 40 degrees. `radius`: radius of the scene sphere in world units. `size`: image edge in pixels.
    """
    distance = torch.full_like(elevation, DISTANCE * radius)
    projection = Projection.perspective(torch.full_like(elevation, FOV), size, size)
    return Cameras(orbit_c2w(elevation, azimuth, distance), projection, size, size)


def field_renderer(
    field: Any,
    occupancy: Any,
    options: MarchConfig,
    device: torch.device | str = "cpu",
    material: Material | None = None,
) -> ViewRenderer:
    """Return a function (`ViewRenderer`) that renders unlit images of a trained representation, without background.

    The function maps V cameras to sRGB (V, H, W, 3), not premultiplied by opacity, and opacities (V, H, W), both in
    [0, 1]. `field` is the representation, on `device`. If it is rasterised (`field.rasterised`), its own `render` is
    used. Otherwise, rays are marched with `options` through the occupied cells of the grid `occupancy`; None: all
    cells are occupied. `material` maps features to colours; None: by the sigmoid (`Material`).
    """
    background, material = SolidBackground().to(device), material or Material()

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


class DepthFusion:
    """Density and colour of a representation without density, such as 3D Gaussians, as functions of points.

    `density(x)` and `colour(x)` map points (N, 3) to densities (N,) and sRGB colours (N, 3). Both are fused from
    rendered colour and depth images as in TSDF fusion. The export extracts the surface from the density.
    """

    @torch.no_grad()
    def __init__(self, render: Callable[[Cameras], Render], cameras: Cameras, radius: float) -> None:
        """Render a colour and a depth image for each of the `cameras`, from which `density` and `colour` are computed.

        `render` is called with one camera at a time; its result has colour, opacity and depth of each pixel. `radius`
        is the radius of the scene sphere in world units. It sets the truncation distance t = 0.05 `radius`
        (TRUNCATION): the volume density, per world unit, is 0 from t in front of the surface on, and has its maximum
        from t behind it on, inside the object.
        """
        self.cameras, self.truncation = cameras, TRUNCATION * radius
        renders = [render(cameras.select([k])) for k in range(len(cameras))]
        opacity, depth = (torch.stack([getattr(r, name)[:, 0] for r in renders]) for name in ("opacity", "depth"))
        infinity = torch.full_like(depth, torch.inf)
        self.depth = torch.where(opacity > 0.5, depth / opacity.clamp(min=1e-3), infinity)  # (V, H W), along the ray
        rgb = torch.stack([r.rgb_fg for r in renders])
        self.rgb = (rgb / opacity[..., None].clamp(min=1e-3)).clamp(0, 1)  # (V, H W, 3)

    def density(self, x: Tensor) -> Tensor:
        """Return the density (N,), per world unit, at points x (N, 3) in world units; larger inside the object.

        In each depth image, the signed distance of a point is measured from the point to the visible surface, along the
        ray from the camera: positive in front of the surface, negative behind it, infinite where the image shows
        background. d is the second largest signed distance over all images. So a point counts as outside only if at
        least two images show it in front of the surface; one image may be wrong (`OUTLIERS`).

        With t = 0.05 scene radii (`TRUNCATION`), the density falls with d like a sigmoid, from 3.9 / t for d <= -t to 0
        for d >= t.
        """
        _, ahead = self._lookup(x)
        distance = ahead.clamp(-self.truncation, self.truncation).topk(OUTLIERS + 1, dim=0).values[-1]
        return DENSITY / self.truncation * (torch.sigmoid(-4 * distance / self.truncation) - EMPTY).clamp(min=0)

    def colour(self, x: Tensor) -> Tensor:
        """Return sRGB colours (N, 3) in [0, 1] of points x (N, 3) in world units.

        Each point is projected to one pixel in each image. Its colour is the mean of these pixels, over the images in
        which the surface at the pixel is within 0.05 scene radii (`TRUNCATION`) of the point, measured along the ray
        from the camera. If there is no such image, it is the mean over all images.
        """
        index, ahead = self._lookup(x)
        weight = (ahead.abs() < self.truncation).float() + 1e-6
        colours = self.rgb.gather(1, index[..., None].expand(-1, -1, 3))
        return (weight[..., None] * colours).sum(0) / weight.sum(0)[:, None]

    def _lookup(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Flat pixel index (V, N) of points x (N, 3) in each of V depth images, and signed distance (V, N) from the
        # point to the visible surface, along the ray: positive in front of the surface, inf where the image shows
        # background.
        pixels, _ = self.cameras.project(x)
        height, width = self.cameras.height, self.cameras.width
        column, row = (pixels[..., k].floor().long().clamp(0, size - 1) for k, size in ((0, width), (1, height)))
        index = row * width + column
        distance = (x - self.cameras.position[:, None]).norm(dim=-1)
        return index, self.depth.gather(1, index) - distance
