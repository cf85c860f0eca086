"""Cameras: poses, a projection, rays and pixels. With ``poses.py`` the only place where camera conventions live.

World: right-handed, z up; azimuth 0 is +x and grows counter-clockwise seen from above. ``c2w`` (4,4) has
OpenGL axes: x right, y up, the camera looks along -z. Pixels count x to the right and y down, and their centres are
at +0.5: the first is at (0.5, 0.5). Radians everywhere; options are in degrees. A field of view is vertical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from threedgen.geometry.poses import pixel_centres, pixel_rays, pixels_to_plane, plane_to_pixels, square_pixels

Index = slice | Sequence[int] | Tensor


@dataclass(frozen=True)
class Projection:
    """How B cameras map a plane to pixels: K (B,3,3), rows [fx, skew, cx], [0, fy, cy], [0, 0, 1].

    The plane (x right, y down) is that at distance 1 for a perspective camera, so that K are its intrinsics. For
    ``parallel`` rays (orthographic) it is the camera's own, in world units: fx and fy are pixels per world unit. The
    principal point may lie anywhere, and pixels need not be square.
    """

    K: Tensor
    parallel: bool = False

    @classmethod
    def perspective(cls, fov: Tensor, height: int, width: int) -> Projection:
        """Vertical angles of view (B,): square pixels, the axis in the middle of the picture."""
        return cls(square_pixels(0.5 * height / torch.tan(0.5 * fov), height, width))

    @classmethod
    def orthographic(cls, half_height: Tensor, height: int, width: int) -> Projection:
        """``half_height`` (B,): world units from the middle of the picture to its upper edge; square pixels."""
        return cls(square_pixels(0.5 * height / half_height, height, width), parallel=True)


@dataclass(frozen=True)
class Cameras:
    """B cameras with pictures of one size in pixels: poses ``c2w`` (B,4,4) and their projection."""

    c2w: Tensor
    projection: Projection
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.c2w)

    @property
    def position(self) -> Tensor:
        """Centres of projection (B,3); of orthographic cameras the middle of their plane."""
        return self.c2w[:, :3, 3]

    @property
    def K(self) -> Tensor:
        """Intrinsics (B,3,3) in pixels. Raises ValueError for orthographic cameras, which have none."""
        if self.projection.parallel:
            raise ValueError("orthographic cameras have no intrinsics")
        return self.projection.K

    @property
    def fov(self) -> Tensor:
        """Vertical angles of view (B,). Raises ValueError for orthographic cameras."""
        return 2 * torch.atan(0.5 * self.height / self.K[:, 1, 1])

    def to(self, device: torch.device | str) -> Cameras:
        """The same cameras on a device."""
        return self._with(self.c2w.to(device), self.projection.K.to(device))

    def select(self, index: Index) -> Cameras:
        """Some of them, in the order of ``index``."""
        return self._with(self.c2w[index], self.projection.K[index])

    def with_size(self, height: int, width: int) -> Cameras:
        """The same views in another resolution: focal lengths and principal points grow with the sides."""
        scale = self.projection.K.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self._with(self.c2w, self.projection.K * scale[:, None]), height=height, width=width)

    def _with(self, c2w: Tensor, K: Tensor) -> Cameras:
        return replace(self, c2w=c2w, projection=replace(self.projection, K=K))

    def rays(self) -> tuple[Tensor, Tensor]:
        """Origins and unit directions (B,H,W,3) through the pixel centres."""
        if not self.projection.parallel:
            origins, directions = pixel_rays(self.c2w, self.K, self.height, self.width)
            return origins.expand_as(directions), directions
        pixels = pixel_centres(self.height, self.width, self.c2w.device).reshape(-1, 2).expand(len(self), -1, -1)
        plane = pixels_to_plane(pixels, self.projection.K) * pixels.new_tensor([1.0, -1.0])
        origins = self.position[:, None] + plane @ self.c2w[:, :3, :2].mT
        origins = origins.unflatten(1, (self.height, self.width))
        return origins, -normalize(self.c2w[:, None, None, :3, 2], dim=-1).expand_as(origins)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World ``points`` (N,3) or (B,N,3) -> pixels (B,N,2) as (x, y), depth (B,N) along the viewing axis.

        Depth is positive in front of the camera; pixels of points behind a perspective one mean nothing.
        """
        local = (points - self.position[:, None]) @ self.c2w[:, :3, :3]
        depth = -local[..., 2]
        plane = torch.stack([local[..., 0], -local[..., 1]], dim=-1)
        plane = plane if self.projection.parallel else plane / depth[..., None]
        return plane_to_pixels(plane, self.projection.K), depth

    def unproject(self, depth: Tensor) -> Tensor:
        """What the pixel centres show at ``depth`` (B,H,W) along the viewing axis: points (B,H,W,3) of the world."""
        origins, directions = self.rays()
        along = -(directions * self.c2w[:, None, None, :3, 2]).sum(-1)
        return origins + directions * (depth / along)[..., None]
