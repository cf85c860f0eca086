"""Where the pixels of one picture are in another: homographies of turned cameras, points of known depth; and warps.

Pixels here are (x, y) counted from the middle of the first one, which is (0, 0), as tables of matches and intrinsics of
published data sets have it: cx is (W - 1) / 2 where ``Cameras`` have W / 2 (``of_cameras`` converts). Cameras have
OpenCV axes (x right, y down, z forward) and poses camera-to-world.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.geometry.cameras import Cameras
from threedgen.geometry.poses import opencv_axes, world_to_camera

NOWHERE = -1e6
"""Both coordinates of a pixel whose depth is unknown, seen from another camera."""
EPSILON = 1e-6
"""Added to depths that divide."""


def of_cameras(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Converts our cameras to intrinsics (B,3,3) and poses (B,4,4) as the functions below take them."""
    K = cameras.K.clone()
    K[:, :2, 2] -= 0.5
    return K, opencv_axes(cameras.c2w)


def pixel_grid(height: int, width: int) -> Tensor:
    """Lists the pixels (H,W,2) of a picture as (x, y), float64."""
    x, y = torch.arange(width, dtype=torch.float64), torch.arange(height, dtype=torch.float64)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def homography(K_from: Tensor, R_from: Tensor, K_to: Tensor, R_to: Tensor) -> Tensor:
    """Finds H (...,3,3) that takes pixels of one camera to those of another in the same place: K' R'^-1 R K^-1.

    ``R`` (...,3,3) are camera-to-world rotations.
    """
    return K_to @ R_to.mT @ R_from @ torch.linalg.inv(K_from)


def apply_homography(H: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Takes pixels (...,N,2), or rays (...,N,3), through H (...,3,3): pixels (...,N,2), and (...,N), bool, whether they
    are in front of the camera.

    The leading axes broadcast. What is behind the camera gets the pixel of the line through it, as in any homography.
    """
    rays = pixels if pixels.shape[-1] == 3 else F.pad(pixels, (0, 1), value=1.0)
    moved = rays @ H.mT
    return moved[..., :2] / moved[..., 2:], moved[..., 2] > 0


def unproject(pixels: Tensor, depth: Tensor, K: Tensor, c2w: Tensor) -> Tensor:
    """Finds the points (N,3) in the world that pixels (N,2) show at ``depth`` (N,) along the viewing axis."""
    rays = F.pad(pixels, (0, 1), value=1.0) @ torch.linalg.inv(K).mT
    return (rays * depth[:, None]) @ c2w[:3, :3].mT + c2w[:3, 3]


def project(points: Tensor, K: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """Projects points (N,3) of the world to pixels (N,2) and their depth (N,) along the viewing axis."""
    w2c = world_to_camera(c2w)
    local = (points @ w2c[:3, :3].mT + w2c[:3, 3]) @ K.mT
    return local[:, :2] / (local[:, 2:] + EPSILON), local[:, 2]


def reproject(pixels: Tensor, depth: Tensor, K: Tensor, c2w: Tensor, K_to: Tensor, to: Tensor) -> tuple[Tensor, Tensor]:
    """Finds pixels (N,2) of known ``depth`` (N,) of a camera (K, c2w) in another (K_to, to): pixels (N,2), depth (N,).

    A pixel without depth (0) is ``NOWHERE``; one behind the other camera has a negative depth there.
    """
    found, z = project(unproject(pixels, depth, K, c2w), K_to, to)
    return torch.where(depth[:, None] > 0, found, NOWHERE), z


def inside(pixels: Tensor, height: int, width: int) -> Tensor:
    """Tells which of the pixels (...,2) lie between the middles of the outermost pixels of a picture: (...), bool."""
    return ((pixels >= 0) & (pixels <= pixels.new_tensor([width - 1, height - 1]))).all(-1)


def sample(
    images: Tensor,
    pixels: Tensor,
    mode: Literal["bilinear", "nearest", "bicubic"] = "bilinear",
    padding: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """Reads pictures (N,C,H,W) at ``pixels`` (N,h,w,2): (N,C,h,w); outside there is zero, or what the border has."""
    height, width = images.shape[-2:]
    pixels = pixels.double() if images.dtype == torch.float64 else pixels.float()  # half precision would move them
    # the form with half pixels also holds for pictures that are one pixel wide
    grid = (pixels + 0.5) / pixels.new_tensor([width, height]) * 2 - 1
    grid = grid.nan_to_num(nan=-9.0).clamp(-9.0, 9.0)  # outside, however far
    found = F.grid_sample(images.to(grid.dtype), grid, mode, padding, align_corners=False)
    return found.to(images.dtype)


def look_up(image: Tensor, pixels: Tensor) -> Tensor:
    """Reads a picture (H,W) at the nearest pixels to (N,2): (N,), 0 for those outside."""
    at = pixels.round()
    there = inside(at, *image.shape)
    x, y = torch.where(there[:, None], at, 0.0).long().unbind(-1)
    return torch.where(there, image[y, x], 0.0)
