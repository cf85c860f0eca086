"""Cameras: poses, projections, rays and pixels. This file and `poses.py` define the coordinate systems.

World: right-handed, z up. Azimuth 0 is +x and increases counter-clockwise, seen from above. The camera-to-world pose
`c2w` (4, 4) has OpenGL axes: x right, y up, the camera looks along -z. Pixel coordinates are (x right, y down); the
centre of the first pixel is (0.5, 0.5). Angles are in radians (in config options: degrees). A field of view is
vertical.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from threedgen.geometry.poses import pixel_centres, pixel_rays, pixels_to_plane, plane_to_pixels, square_pixels
from threedgen.run.dtypes import no_autocast
from threedgen.run.memory import to_device

Index = slice | Sequence[int] | Tensor


@dataclass(frozen=True)
class Projection:
    """Projection of B cameras onto their images.

    Attributes:
        K: (B, 3, 3) intrinsics in image pixels (first pixel centre (0.5, 0.5)), with rows [fx, skew, cx], [0, fy, cy],
            [0, 0, 1].
        parallel: True for orthographic cameras. fx and fy are then in pixels per world unit.
    """

    K: Tensor
    parallel: bool = False

    @classmethod
    def perspective(cls, fov: Tensor, height: int, width: int) -> "Projection":
        """Create a projection from vertical fields of view (B,) in radians.

        Pixels are square, the principal point is the image centre, and height and width are in pixels.
        """
        return cls(square_pixels(0.5 * height / torch.tan(0.5 * fov), height, width))

    @classmethod
    def orthographic(cls, half_height: Tensor, height: int, width: int) -> "Projection":
        """Create a projection from half the image height in world units, `half_height` (B,).

        Pixels are square, the principal point is the image centre, and height and width are in pixels.
        """
        return cls(square_pixels(0.5 * height / half_height, height, width), parallel=True)


@dataclass(frozen=True)
class Cameras:
    """B cameras: poses, intrinsics, and one image size for all.

    `c2w` (B, 4, 4) are camera-to-world poses with OpenGL axes, `projection` has the intrinsics, `height` and `width`
    are the image size in pixels.
    """

    c2w: Tensor  # (B, 4, 4) camera-to-world poses with OpenGL axes
    projection: Projection  # intrinsics of the B cameras
    height: int  # image height in pixels
    width: int  # image width in pixels

    def __len__(self) -> int:
        return len(self.c2w)

    @property
    def position(self) -> Tensor:
        """Camera positions (B, 3) in world units.

        For an orthographic camera, it is the origin of the ray through the pixel (cx, cy) of the intrinsics K. Depths
        along the viewing axis are measured from there.
        """
        return self.c2w[:, :3, 3]

    @property
    def K(self) -> Tensor:
        """Intrinsics (B, 3, 3) in image pixels. Raises ValueError for orthographic cameras."""
        if self.projection.parallel:
            raise ValueError("Orthographic cameras have no intrinsics: projection.parallel=True. Use projection.K.")
        return self.projection.K

    @property
    def fov(self) -> Tensor:
        """Vertical fields of view (B,) in radians. Raises ValueError for orthographic cameras."""
        return 2 * torch.atan(0.5 * self.height / self.K[:, 1, 1])

    def to(self, device: torch.device | str) -> "Cameras":
        target = torch.device(device)
        return self._with(to_device(self.c2w, target), to_device(self.projection.K, target))

    def select(self, index: Index) -> "Cameras":
        """Return the cameras at `index` (slice, integers or bool mask), in that order."""
        return self._with(self.c2w[index], self.projection.K[index])

    def with_size(self, height: int, width: int) -> "Cameras":
        """Return cameras with the same horizontal and vertical field of view and another image size in pixels.

        The rows of K for x and y are scaled separately, so a new aspect ratio gives pixels that are not square.
        """
        scale = self.projection.K.new_tensor([width / self.width, height / self.height, 1.0])
        return replace(self._with(self.c2w, self.projection.K * scale[:, None]), height=height, width=width)

    def _with(self, c2w: Tensor, K: Tensor) -> "Cameras":
        return replace(self, c2w=c2w, projection=replace(self.projection, K=K))

    def rays(self) -> tuple[Tensor, Tensor]:
        """Return the rays through the pixel centres: origins and unit directions, (B, H, W, 3) each, in world space."""
        if not self.projection.parallel:
            origins, directions = pixel_rays(self.c2w, self.K, self.height, self.width)
            return origins.expand_as(directions), directions
        pixels = pixel_centres(self.height, self.width, self.c2w.device).reshape(-1, 2).expand(len(self), -1, -1)
        plane = pixels_to_plane(pixels, self.projection.K) * pixels.new_tensor([1.0, -1.0])
        origins = self.position[:, None] + plane @ self.c2w[:, :3, :2].mT
        origins = origins.unflatten(1, (self.height, self.width))
        return origins, -normalize(self.c2w[:, None, None, :3, 2], dim=-1).expand_as(origins)

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project world points (N, 3) or (B, N, 3). Return pixels (B, N, 2), (x, y), and depths (B, N).

        The first pixel centre is (0.5, 0.5). The depth is measured along the viewing axis, in world units, and is
        positive in front of the camera. For perspective cameras, pixels of points with depth <= 0 are meaningless.
        """
        with no_autocast(points.device):  # half-precision products would shift points by pixels
            local = (points - self.position[:, None]) @ self.c2w[:, :3, :3]
        depth = -local[..., 2]
        plane = torch.stack([local[..., 0], -local[..., 1]], dim=-1)
        plane = plane if self.projection.parallel else plane / depth[..., None]
        return plane_to_pixels(plane, self.projection.K), depth


# --- maps of cameras and surfaces that condition a network: six channels, in world coordinates


def view_rays(c2w: Tensor) -> Tensor:
    """Encode the poses c2w (B, 4, 4) of orthographic cameras as (B, 6), the input of a network.

    All pixels of such a camera have the same direction. The first three numbers are the unit viewing direction, the
    others the camera position scaled to length 1, both in world coordinates. The camera-to-world poses c2w have OpenGL
    axes.
    """
    return torch.cat([-normalize(c2w[:, :3, 2], dim=-1), normalize(c2w[:, :3, 3], dim=-1)], dim=1)


def plucker_rays(cameras: Cameras) -> Tensor:
    """Return the Pluecker coordinates (B, 6, H, W) of the pixel rays of B cameras, the input of a network.

    The channels are the ray's unit direction d (3) and its moment (3), the cross product of the ray's origin and d,
    both in world coordinates.
    """
    origins, directions = cameras.rays()
    moments = torch.linalg.cross(origins, directions, dim=-1)
    return torch.cat([directions, moments], dim=-1).permute(0, 3, 1, 2)


def ray_control(rays: Tensor) -> Tensor:
    """Map `plucker_rays` or `view_rays` (B, 6, ...) linearly from [-1, 1] to [0, 1], and clamp values outside.

    The result has the same shape. It is a control image, which tells the multi-view diffusion model MV-Adapter the
    cameras of the views to sample.
    """
    return ((rays + 1.0) / 2.0).clamp(0, 1)


def geometry_control(points: Tensor, normals: Tensor, mask: Tensor) -> Tensor:
    """Encode the surface of an object in B images as control images (B, 6, H, W) in [0, 1], for MV-Adapter.

    Channels 0 to 2 are the points + 0.5, channels 3 to 5 are (normals + 1) / 2. All channels are 0.5 in the background.
    Takes points (B, H, W, 3) in [-0.5, 0.5] and unit normals (B, H, W, 3) of the surface at each pixel, both along the
    axes of MV-Adapter's world (z up, front at -y), and the `mask` (B, H, W), nonzero for pixels that show the object.
    """
    maps = torch.cat([points + 0.5, (normals + 1) / 2], dim=-1).clamp(0, 1)
    return torch.where(mask.bool()[..., None], maps, 0.5).permute(0, 3, 1, 2)
