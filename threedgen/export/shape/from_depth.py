"""Compute density and colours at points from rendered depth images, for representations without a density."""

from collections.abc import Callable

import torch
from torch import Tensor

from threedgen.geometry.cameras import Cameras
from threedgen.representations.base import Render

TRUNCATION = 0.05
"""Truncation distance, in scene radii. The density is constant farther than this from the surface."""
DENSITY = 4.0
"""Maximum density (per world unit) multiplied by the truncation distance."""
OUTLIERS = 1
"""Number of views that are ignored if they see a point in front of the surface. More such views make it empty."""


class DepthFusion:
    """Field made of depth images of V cameras, similar to TSDF fusion. The mesh extraction queries it.

    A point is outside if more than OUTLIERS views see it in front of the surface.
    """

    @torch.no_grad()
    def __init__(self, render: Callable[[Cameras], Render], cameras: Cameras, radius: float) -> None:
        """Render V cameras one by one; `radius` is the radius of the scene sphere in world units."""
        self.cameras, self.truncation = cameras, TRUNCATION * radius
        renders = [render(cameras.select([k])) for k in range(len(cameras))]
        opacity, depth = (torch.stack([getattr(r, name)[:, 0] for r in renders]) for name in ("opacity", "depth"))
        infinity = torch.full_like(depth, torch.inf)
        self.depth = torch.where(opacity > 0.5, depth / opacity.clamp(min=1e-3), infinity)  # (V, H W), along the ray
        rgb = torch.stack([r.rgb_fg for r in renders])
        self.rgb = (rgb / opacity[..., None].clamp(min=1e-3)).clamp(0, 1)  # (V, H W, 3)

    def density(self, x: Tensor) -> Tensor:
        """Return the density (N,), per world unit, at points x (N, 3) in world units."""
        _, ahead = self._lookup(x)
        distance = ahead.clamp(-self.truncation, self.truncation).topk(OUTLIERS + 1, dim=0).values[-1]
        return DENSITY / self.truncation * torch.sigmoid(-4 * distance / self.truncation)

    def colour(self, x: Tensor) -> Tensor:
        """Return the mean sRGB colour (N, 3) in [0, 1] of points x (N, 3), over views that see them at the surface."""
        index, ahead = self._lookup(x)
        weight = (ahead.abs() < self.truncation).float() + 1e-6
        colours = self.rgb.gather(1, index[..., None].expand(-1, -1, 3))
        return (weight[..., None] * colours).sum(0) / weight.sum(0)[:, None]

    def _lookup(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Look up points x (N, 3) in each depth image.

        Returns the flat pixel index (V, N), and the distance (V, N) along the ray from the point to the visible
        surface: positive if the point is in front of the surface, inf where the image shows background.
        """
        pixels, _ = self.cameras.project(x)
        height, width = self.cameras.height, self.cameras.width
        column, row = (pixels[..., k].floor().long().clamp(0, size - 1) for k, size in ((0, width), (1, height)))
        index = row * width + column
        distance = (x - self.cameras.position[:, None]).norm(dim=-1)
        return index, self.depth.gather(1, index) - distance
