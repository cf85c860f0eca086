"""A picture that is given, as views of the panorama see it: warped by its own angle of view, with a mask per pixel.

It looks straight ahead in view 0, as a picture plane parallel to that of the view. As the reference, only view 0 is
told what the picture shows; one that is wider than a view is told to all views that see some of it, as the rest of it
would be lost. (The reference takes every picture for one of 90 degrees, and cuts a square out of it.)
"""

from __future__ import annotations

from math import tan
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.geometry.panorama import intrinsics, rotation
from threedgen.geometry.picture_file import load_image
from threedgen.geometry.views import resize
from threedgen.geometry.warp import apply_homography, homography, inside, pixel_grid, sample

FINER = 2
"""Places that are read for a pixel of a view, across and down."""


def read_image(path: str) -> Tensor:
    """A picture (H,W,3) in [0,1], upright; what is transparent keeps its colour. Raises ConfigError."""
    picture = load_image(Path(path).expanduser(), key="image").convert("RGB")
    return torch.from_numpy(np.asarray(picture, np.float32) / 255)


def given_views(picture: Tensor, fov: float, K: Tensor, R: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Warps a picture (H,W,3) that spans ``fov``, in radians, from left to right into views with K (3,3) and R (V,3,3):
    views (V,size,size,3), 0 where it is not, and which of their pixels it shows (V,size,size), bool."""
    K_picture, K_fine = intrinsics(fov, *picture.shape[:2]), resized(K, FINER, FINER)
    surplus = float(K_picture[0, 0] / K_fine[0, 0])
    if surplus > 1:  # else pixels between those that are read would be lost
        before = picture.shape
        picture = resize(picture[None], *(max(1, round(side / surplus)) for side in before[:2]))[0]
        K_picture = resized(K_picture, picture.shape[1] / before[1], picture.shape[0] / before[0])
    H = homography(K_fine, R, K_picture, rotation(0.0))[:, None]
    pixels, front = apply_homography(H, pixel_grid(FINER * size, FINER * size))
    height, width = picture.shape[:2]
    seen = front & inside(pixels + 0.5, height + 1, width + 1)  # up to the outer borders of its pixels
    if tan(fov / 2) <= 0.5 * size / float(K[0, 0]) + 1e-6:
        seen[1:] = False
    views = sample(picture.permute(2, 0, 1).expand(len(R), -1, -1, -1), pixels, padding="border")
    shown = F.avg_pool2d(seen.float(), FINER) == 1
    return F.avg_pool2d(views, FINER).permute(0, 2, 3, 1) * shown[..., None], shown


def resized(K: Tensor, across: float, down: float) -> Tensor:
    """K (3,3) of a picture whose sides became longer by these factors; pixels count from the middle of the first."""
    scale, half = torch.diag(K.new_tensor([across, down, 1])), torch.eye(3, dtype=K.dtype)
    half[:2, 2] = 0.5
    return torch.linalg.inv(half) @ scale @ half @ K
