"""Density and colours at points from rendered depth, for representations without a density."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from threedgen.geometry.cameras import Cameras
from threedgen.representations.base import Render

TRUNCATION = 0.05
"""Distance to the surface beyond which the density is constant, in radii of the scene."""
DENSITY = 4.0
"""Density inside, times the truncation distance."""
OUTLIERS = 1
"""Views that may see a point in front of the surface without making it empty."""


class DepthFusion:
    """Signed distances from depth images of V cameras: a point that views see in front of the surface is outside."""

    @torch.no_grad()
    def __init__(self, render: Callable[[Cameras], Render], cameras: Cameras, radius: float) -> None:
        """Render the cameras, one by one; `radius` is that of the scene, in world units."""
        self.cameras, self.truncation = cameras, TRUNCATION * radius
        renders = [render(cameras.select([k])) for k in range(len(cameras))]
        opacity, depth = (torch.stack([getattr(r, name)[:, 0] for r in renders]) for name in ("opacity", "depth"))
        infinity = torch.full_like(depth, torch.inf)
        self.depth = torch.where(opacity > 0.5, depth / opacity.clamp(min=1e-3), infinity)  # (V, H W), along the ray
        rgb = torch.stack([r.rgb_fg for r in renders])
        self.rgb = (rgb / opacity[..., None].clamp(min=1e-3)).clamp(0, 1)  # (V, H W, 3)

    def density(self, x: Tensor) -> Tensor:
        """Return the density (N,) of points x (N, 3) in world units."""
        _, ahead = self._lookup(x)
        distance = ahead.clamp(-self.truncation, self.truncation).topk(OUTLIERS + 1, dim=0).values[-1]
        return DENSITY / self.truncation * torch.sigmoid(-4 * distance / self.truncation)

    def colour(self, x: Tensor) -> Tensor:
        """Return the mean colour (N, 3) of points x (N, 3) in the views that see them at the surface."""
        index, ahead = self._lookup(x)
        weight = (ahead.abs() < self.truncation).float() + 1e-6
        colours = self.rgb.gather(1, index[..., None].expand(-1, -1, 3))
        return (weight[..., None] * colours).sum(0) / weight.sum(0)[:, None]

    def _lookup(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pixel index (V, N) of points, and how far they are in front of the visible surface (V, N)."""
        pixels, _ = self.cameras.project(x)
        height, width = self.cameras.height, self.cameras.width
        column, row = (pixels[..., k].floor().long().clamp(0, size - 1) for k, size in ((0, width), (1, height)))
        index = row * width + column
        distance = (x - self.cameras.position[:, None]).norm(dim=-1)
        return index, self.depth.gather(1, index) - distance
