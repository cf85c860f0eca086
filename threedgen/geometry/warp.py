"""Mapping of pixels between views: homographies of rotated cameras, reprojection with known depth, and sampling.

Pixels and poses match published data sets and differ from ``Cameras``; ``to_opencv`` converts. Pixels are (x, y) with
the first pixel centre at (0, 0), so a centred cx is (W - 1) / 2. Poses are camera-to-world with OpenCV axes (x right, y
down, z forward). Depth is measured along the viewing axis in world units.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.geometry.cameras import Cameras
from threedgen.geometry.poses import opencv_axes, world_to_camera

INVALID_PIXEL = -1e6
"""x and y of reprojected pixels with unknown depth."""
EPSILON = 1e-6
"""Added to depths before a division, in world units."""


def to_opencv(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Return intrinsics (B, 3, 3) and camera-to-world poses (B, 4, 4) of cameras, with the axes of this module."""
    K = cameras.K.clone()
    K[:, :2, 2] -= 0.5
    return K, opencv_axes(cameras.c2w)


def pixel_grid(height: int, width: int) -> Tensor:
    """Return the pixel centres (H, W, 2) of an image as (x, y), float64."""
    x, y = torch.arange(width, dtype=torch.float64), torch.arange(height, dtype=torch.float64)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def homography(K_from: Tensor, R_from: Tensor, K_to: Tensor, R_to: Tensor) -> Tensor:
    """Return the homography (..., 3, 3) between cameras at one position, K_to R_to^-1 R_from K_from^-1.

    The intrinsics K and the camera-to-world rotations R are (..., 3, 3) each.
    """
    return K_to @ R_to.mT @ R_from @ torch.linalg.inv(K_from)


def apply_homography(H: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Apply homographies H (..., 3, 3) to pixels (..., N, 2) or rays (..., N, 3). Leading axes broadcast.

    Returns pixels (..., N, 2), and a bool mask (..., N) of the pixels in front of the camera.
    """
    rays = pixels if pixels.shape[-1] == 3 else F.pad(pixels, (0, 1), value=1.0)
    mapped = rays @ H.mT
    return mapped[..., :2] / mapped[..., 2:], mapped[..., 2] > 0


def unproject(pixels: Tensor, depth: Tensor, K: Tensor, c2w: Tensor) -> Tensor:
    """Return world points (N, 3) of pixels (N, 2) at ``depth`` (N,), for one camera: K (3, 3) and c2w (4, 4)."""
    rays = F.pad(pixels, (0, 1), value=1.0) @ torch.linalg.inv(K).mT
    return (rays * depth[:, None]) @ c2w[:3, :3].mT + c2w[:3, 3]


def project(points: Tensor, K: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """Project world points (N, 3) to pixels (N, 2) and depths (N,) of one camera: K (3, 3) and c2w (4, 4)."""
    w2c = world_to_camera(c2w)
    local = (points @ w2c[:3, :3].mT + w2c[:3, 3]) @ K.mT
    return local[:, :2] / (local[:, 2:] + EPSILON), local[:, 2]


def reproject(
    pixels: Tensor, depth: Tensor, K: Tensor, c2w: Tensor, K_to: Tensor, c2w_to: Tensor
) -> tuple[Tensor, Tensor]:
    """Reproject pixels (N, 2) with ``depth`` (N,), 0 = unknown, from camera (K, c2w) to camera (K_to, c2w_to).

    Returns pixels (N, 2), which are ``INVALID_PIXEL`` for unknown depth, and depths (N,), negative behind the camera.
    """
    projected, z = project(unproject(pixels, depth, K, c2w), K_to, c2w_to)
    return torch.where(depth[:, None] > 0, projected, INVALID_PIXEL), z


def inside(pixels: Tensor, height: int, width: int) -> Tensor:
    """Return a bool mask (...) of the pixels (..., 2) that lie between the outermost pixel centres of an image."""
    return ((pixels >= 0) & (pixels <= pixels.new_tensor([width - 1, height - 1]))).all(-1)


def sample(
    images: Tensor,
    pixels: Tensor,
    mode: Literal["bilinear", "nearest", "bicubic"] = "bilinear",
    padding: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """Sample images (N, C, H, W) at ``pixels`` (N, h, w, 2). Returns (N, C, h, w) in the dtype of the images."""
    height, width = images.shape[-2:]
    pixels = pixels.double() if images.dtype == torch.float64 else pixels.float()  # half precision would shift them
    # align_corners=False also works for images that are one pixel wide
    grid = (pixels + 0.5) / pixels.new_tensor([width, height]) * 2 - 1
    grid = grid.nan_to_num(nan=-9.0).clamp(-9.0, 9.0)  # far outside, finite
    return F.grid_sample(images.to(grid.dtype), grid, mode, padding, align_corners=False).to(images.dtype)


def sample_nearest(image: Tensor, pixels: Tensor) -> Tensor:
    """Sample an image (H, W) at the pixel centres nearest to ``pixels`` (N, 2). Returns (N,), 0 outside the image."""
    nearest = pixels.round()
    visible = inside(nearest, *image.shape)
    x, y = torch.where(visible[:, None], nearest, 0.0).long().unbind(-1)
    return torch.where(visible, image[y, x], 0.0)
