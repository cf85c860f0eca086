"""Perspective views of a panorama: their cameras, views out of the six faces of a skybox, an equirectangular picture
out of views, and views out of such a picture.

Cameras and pixels are those of ``warp``: OpenCV axes, camera-to-world rotations, pixels counted from the middle of the
first one. Angles in radians: yaw to the right, pitch upwards, as MVDiffusion (arXiv 2307.01097) and its data have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sin, tan

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import Cameras, Projection
from .poses import opencv_axes
from .warp import apply_homography, homography, inside, pixel_grid, sample

SKYBOX = ((-pi / 2, pi / 2), (1.5 * pi, 0.0), (0.0, 0.0), (pi / 2, 0.0), (pi, 0.0), (-pi / 2, -pi / 2))
"""(yaw, pitch) of Matterport3D's faces in the order of their files: up, four around, down; each sees 90 degrees."""


def intrinsics(fov: float, height: int, width: int) -> Tensor:
    """K (3,3), float64, for a horizontal angle of view: square pixels, the axis in the middle of the picture."""
    focal = 0.5 * width / tan(0.5 * fov)
    return torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], dtype=torch.float64)


def rotation(yaw: float, pitch: float = 0.0) -> Tensor:
    """R (3,3), float64, camera-to-world: turned about the vertical, then about its own x axis."""
    turn = [[cos(yaw), 0, sin(yaw)], [0, 1, 0], [-sin(yaw), 0, cos(yaw)]]
    tilt = [[1, 0, 0], [0, cos(pitch), -sin(pitch)], [0, sin(pitch), cos(pitch)]]
    return torch.tensor(turn, dtype=torch.float64) @ torch.tensor(tilt, dtype=torch.float64)


def ring(views: int = 8, first_yaw: float = 0.0) -> Tensor:
    """R (V,3,3) of views evenly around the horizon, each to the right of the one before."""
    return torch.stack([rotation(first_yaw + 2 * pi * n / views) for n in range(views)])


def cameras(R: Tensor, fov: float, height: int, width: int, position: Sequence[float] = (0.0, 0.0, 0.0)) -> Cameras:
    """Converts rotations R (V,3,3) to our cameras at a place of a world with z up: yaw 0 looks along +x, yaw 90 degrees
    along -y. ``fov``: horizontal angle of view."""
    K = intrinsics(fov, height, width)
    K[:2, 2] += 0.5
    world = torch.tensor([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64).repeat(len(R), 1, 1)
    c2w[:, :3, :3] = opencv_axes(world @ R.double())
    c2w[:, :3, 3] = torch.tensor(position, dtype=torch.float64)
    return Cameras(c2w.float(), Projection(K.float().repeat(len(R), 1, 1)), height, width)


def skybox_views(faces: Tensor, K: Tensor, R: Tensor, height: int, width: int) -> Tensor:
    """Renders views (V,3,height,width) with K (3,3) and R (V,3,3) of a skybox: six square ``faces`` (6,3,S,S)."""
    size = faces.shape[-1]
    K_face, R_face = intrinsics(pi / 2, size, size), torch.stack([rotation(*angles) for angles in SKYBOX])
    return seen_straightest(faces, K_face, R_face, K, R, height, width)


def seen_straightest(
    faces: Tensor, K_face: Tensor, R_face: Tensor, K: Tensor, R: Tensor, height: int, width: int
) -> Tensor:
    """Renders views (V,C,height,width) with K (3,3) and R (V,3,3) out of pictures ``faces`` (N,C,h,w) with theirs.

    Each pixel is read, bilinearly, from the one picture whose axis is nearest to its ray, so no seam is counted twice;
    views of themselves so get to agree.
    """
    R_face = R_face.double()
    grid = F.pad(pixel_grid(height, width), (0, 1), value=1.0)
    rays = grid @ (R.double() @ torch.linalg.inv(K.double())).mT[:, None]
    facing = (rays @ R_face[:, :, 2].mT).argmax(-1)  # (V,H,W): the face whose axis is nearest
    views = faces.new_zeros(len(R), faces.shape[1], height, width)
    for number, face in enumerate(faces):
        H = homography(K.double(), R.double(), K_face.double(), R_face[number])[:, None]
        pixels, _ = apply_homography(H, pixel_grid(height, width))
        seen = sample(face.expand(len(R), -1, -1, -1), pixels, padding="border")
        views = torch.where((facing == number)[:, None].to(faces.device), seen, views)
    return views


def equirectangular_rays(height: int, width: int, ends: bool = False) -> Tensor:
    """Directions (H,W,3), float64, of an equirectangular picture: longitude -180..180 degrees from left to right, 0
    (yaw 0) in the middle, latitude 90..-90 downwards; ``ends``: the outermost pixels lie on these limits."""
    steps = [torch.linspace(-1, 1, n) if ends else (torch.arange(n) + 0.5) / n * 2 - 1 for n in (height, width)]
    latitude, longitude = -steps[0].double()[:, None] * pi / 2, steps[1].double() * pi
    down = -torch.sin(latitude).expand(height, width)
    return torch.stack(
        [torch.cos(latitude) * torch.sin(longitude), down, torch.cos(latitude) * torch.cos(longitude)], -1
    )


def stitch(
    views: Tensor, K: Tensor, R: Tensor, height: int, width: int, reference: bool = False
) -> tuple[Tensor, Tensor]:
    """Blends views (V,C,h,w) with K (3,3) and R (V,3,3) into an equirectangular picture (C,height,width).

    A view counts most in its middle column and nothing at its left and right border (a triangle), which hides the seams
    of views that overlap. Returns with the picture the sum of weights (height,width); where it is 0, as at the poles,
    so is the picture. ``reference``: as the authors' tool does, half a pixel of the views and of the panorama aside.
    """
    shift = 0.5 if reference else 0.0
    rays = equirectangular_rays(height, width, ends=reference)
    total, weights = views.new_zeros(views.shape[1], height, width), views.new_zeros(height, width)
    rows, columns = views.shape[-2:]
    for view, turned in zip(views, R.double(), strict=True):
        pixels, front = apply_homography(K.double() @ turned.mT, rays)
        seen = front & inside(pixels + 0.5, rows + 1, columns + 1)  # up to the outer borders of the pixels
        weight = 1 - ((pixels[..., 0] + 0.5) / columns * 2 - 1).abs()
        weight = torch.where(seen, weight, 0.0).to(views)
        total += weight * sample(view[None], (pixels + shift)[None], "bicubic", "border")[0]
        weights += weight
    return total / weights.clamp_min(1e-12), weights


def covered(weights: Tensor) -> slice:
    """Finds the rows of a panorama whose every pixel has a weight (H,W) above 0, as many above the horizon as below.

    Raises ValueError if there is a gap at the horizon.
    """
    height, whole = len(weights), (weights > 0).all(1)
    whole &= whole.flip(0)
    if not whole[height // 2]:
        raise ValueError("the views leave a gap at the horizon")
    top = height // 2 - int(whole[: height // 2].flip(0).long().cumprod(0).sum())
    return slice(top, height - top)


def equirectangular_views(picture: Tensor, K: Tensor, R: Tensor, height: int, width: int) -> Tensor:
    """Renders views (V,C,height,width) with K (3,3) and R (V,3,3) of an equirectangular picture (C,h,w).

    It goes all around, and as far up and down as its shape says: a row is as many degrees as a column, the horizon in
    the middle. What is above or below has the colours of its border.
    """
    rows, columns = picture.shape[-2:]
    rays = F.pad(pixel_grid(height, width), (0, 1), value=1.0) @ (R.double() @ torch.linalg.inv(K.double())).mT[:, None]
    longitude = torch.atan2(rays[..., 0], rays[..., 2])
    latitude = torch.atan2(-rays[..., 1], rays[..., ::2].norm(dim=-1))
    per_radian = columns / (2 * pi)
    pixels = torch.stack([longitude * per_radian + columns / 2 + 0.5, rows / 2 - 0.5 - latitude * per_radian], -1)
    joined = F.pad(picture[None], (1, 1, 0, 0), mode="circular")  # the left border is beside the right one
    return torch.cat([sample(joined, view[None], padding="border") for view in pixels])


def ring_pairs(views: int) -> Sequence[tuple[int, int]]:
    """Pairs (i, i + 1) of views around the horizon, the last with the first; none of a single view."""
    return [(n, (n + 1) % views) for n in range(views)] if views > 1 else []
