"""Perspective views of panoramas (skyboxes, equirectangular images), and equirectangular images stitched from views.

Cameras have OpenCV axes (x right, y down, z forward) as in `warp.py`, R is a camera-to-world rotation, K is in pixels
of the perspective views, and the first pixel centre is (0, 0). The panorama's world has the axes x right, y down, z
forward of the camera with yaw 0 and pitch 0. Angles are in radians: yaw to the right, pitch upwards, as in MVDiffusion.
"""

from collections.abc import Sequence
from math import cos, pi, sin, tan

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import Cameras, Projection
from .poses import opencv_axes
from .warp import apply_homography, homography, inside, pixel_grid, sample

SKYBOX = ((-pi / 2, pi / 2), (1.5 * pi, 0.0), (0.0, 0.0), (pi / 2, 0.0), (pi, 0.0), (-pi / 2, -pi / 2))
"""(yaw, pitch) of the six images of a Matterport3D skybox, each 90 degrees wide: up, four horizontal ones, down."""


def intrinsics(fov: float, height: int, width: int) -> Tensor:
    """Return intrinsics K (3, 3), float64, with square pixels and the centre of the image as principal point.

    `fov` is the horizontal field of view in radians. The centre of the first pixel is (0, 0).
    """
    focal = 0.5 * width / tan(0.5 * fov)
    return torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], dtype=torch.float64)


def rotation(yaw: float, pitch: float = 0.0) -> Tensor:
    """Return a camera-to-world rotation (3, 3), float64: pitch upwards, then yaw to the right, both in radians.

    Camera and world have OpenCV axes (x right, y down, z forward). With yaw 0 and pitch 0 the camera looks along +z.
    """
    turn = [[cos(yaw), 0, sin(yaw)], [0, 1, 0], [-sin(yaw), 0, cos(yaw)]]
    tilt = [[1, 0, 0], [0, cos(pitch), -sin(pitch)], [0, sin(pitch), cos(pitch)]]
    return torch.tensor(turn, dtype=torch.float64) @ torch.tensor(tilt, dtype=torch.float64)


def ring(views: int = 8, first_yaw: float = 0.0) -> Tensor:
    """Return camera-to-world rotations (V, 3, 3) of V = `views` horizontal cameras at evenly spaced yaws.

    Camera and world have OpenCV axes (x right, y down, z forward). The first camera has the yaw `first_yaw` in radians.
    Yaw 0 looks along +z and yaw increases to the right.
    """
    return torch.stack([rotation(first_yaw + 2 * pi * n / views) for n in range(views)])


def cameras(R: Tensor, fov: float, height: int, width: int, position: Sequence[float] = (0.0, 0.0, 0.0)) -> Cameras:
    """Create V cameras at one position from the rotations R (V, 3, 3) of panorama views, as from `rotation` or `ring`.

    R is camera-to-world with OpenCV axes, for a world with x right, y down and z forward. The result is in the z-up
    world of `Cameras`, where the direction (x, y, z) of the first world is (z, -x, -y). A camera with the identity as R
    looks along +x there. `fov` is the horizontal field of view in radians. `position` is (x, y, z) in the z-up world.
    """
    K = intrinsics(fov, height, width)
    K[:2, 2] += 0.5
    world = torch.tensor([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    c2w = torch.eye(4, dtype=torch.float64).repeat(len(R), 1, 1)
    c2w[:, :3, :3] = opencv_axes(world @ R.double())
    c2w[:, :3, 3] = torch.tensor(position, dtype=torch.float64)
    return Cameras(c2w.float(), Projection(K.float().repeat(len(R), 1, 1)), height, width)


def skybox_views(faces: Tensor, K: Tensor, R: Tensor, height: int, width: int) -> Tensor:
    """Render V perspective views (V, 3, height, width) from the six images (6, 3, S, S) of a skybox.

    The skybox images are, in this order, the view upwards, horizontal views with yaws of 270, 0, 90 and 180 degrees,
    and the view downwards (`SKYBOX`). Yaw increases to the right, and yaw 0 looks along +z. The camera of the view
    upwards or downwards has yaw 270 and is tilted by 90 degrees. The rendered views have the intrinsics K (3, 3), with
    the first pixel centre at (0, 0), and the camera-to-world rotations R (V, 3, 3), both for OpenCV axes.
    """
    size = faces.shape[-1]
    K_face, R_face = intrinsics(pi / 2, size, size), torch.stack([rotation(*angles) for angles in SKYBOX])
    return render_from_views(faces, K_face, R_face, K, R, height, width)


def render_from_views(
    faces: Tensor, K_face: Tensor, R_face: Tensor, K: Tensor, R: Tensor, height: int, width: int
) -> Tensor:
    """Render V views (V, C, height, width) from N source views (N, C, h, w) at the same position.

    The rendered views have intrinsics K (3, 3) and camera-to-world rotations R (V, 3, 3). The source views `faces` have
    intrinsics K_face (3, 3) and camera-to-world rotations R_face (N, 3, 3). All cameras have OpenCV axes, and the first
    pixel centre is (0, 0). Each pixel is sampled bilinearly from the source view whose viewing axis is nearest to the
    pixel's ray. A ray outside this view gets the value of the nearest border pixel.
    """
    R_face = R_face.double()
    grid = F.pad(pixel_grid(height, width), (0, 1), value=1.0)
    rays = grid @ (R.double() @ torch.linalg.inv(K.double())).mT[:, None]
    facing = (rays @ R_face[:, :, 2].mT).argmax(-1)  # (V, H, W): index of the nearest source view
    views = faces.new_zeros(len(R), faces.shape[1], height, width)
    for number, face in enumerate(faces):
        H = homography(K.double(), R.double(), K_face.double(), R_face[number])[:, None]
        pixels, _ = apply_homography(H, pixel_grid(height, width))
        sampled = sample(face.expand(len(R), -1, -1, -1), pixels, padding="border")
        views = torch.where((facing == number)[:, None].to(faces.device), sampled, views)
    return views


def equirectangular_rays(height: int, width: int) -> Tensor:
    """Return unit ray directions (H, W, 3), float64, of an equirectangular image: x right, y down, +z at its centre."""
    steps = [(torch.arange(n) + 0.5) / n * 2 - 1 for n in (height, width)]
    latitude, longitude = -steps[0].double()[:, None] * pi / 2, steps[1].double() * pi
    down = -torch.sin(latitude).expand(height, width)
    return torch.stack(
        [torch.cos(latitude) * torch.sin(longitude), down, torch.cos(latitude) * torch.cos(longitude)], -1
    )


def stitch(views: Tensor, K: Tensor, R: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Blend views (V, C, h, w) with K (3, 3) and camera-to-world rotations R (V, 3, 3) into an equirectangular image.

    The axes are OpenCV's, and K is for a first pixel centre at (0, 0). +z of the world is at the centre of the image.
    The weight of a view falls linearly from 1 in its middle column to 0 at its left and right borders. Returns the
    image (C, height, width), 0 where no view covers it, and the sums of weights (height, width).
    """
    rays = equirectangular_rays(height, width)
    total, weights = views.new_zeros(views.shape[1], height, width), views.new_zeros(height, width)
    rows, columns = views.shape[-2:]
    for view, R_view in zip(views, R.double(), strict=True):
        pixels, front = apply_homography(K.double() @ R_view.mT, rays)
        visible = front & inside(pixels + 0.5, rows + 1, columns + 1)  # up to the outer borders of the pixels
        weight = 1 - ((pixels[..., 0] + 0.5) / columns * 2 - 1).abs()
        weight = torch.where(visible, weight, 0.0).to(views)
        total += weight * sample(view[None], pixels[None], "bicubic", "border")[0]
        weights += weight
    return total / weights.clamp_min(1e-12), weights


def covered_rows(weights: Tensor) -> slice:
    """Return the largest slice of rows, symmetric about the middle row, in which all weights (H, W) are above 0."""
    height, complete = len(weights), (weights > 0).all(1)
    complete &= complete.flip(0)
    top = height // 2 - int(complete[: height // 2].flip(0).long().cumprod(0).sum())
    return slice(top, height - top)


def equirectangular_views(image: Tensor, K: Tensor, R: Tensor, height: int, width: int) -> Tensor:
    """Render V perspective views (V, C, height, width) from an equirectangular image (C, h, w).

    The views have intrinsics K (3, 3), with the first pixel centre at (0, 0), and camera-to-world rotations R (V, 3, 3)
    with OpenCV axes. The image covers 360 degrees, with square pixels, the horizon in the middle row and +z in the
    middle column; x is right and y down. Directions above or below the image get the colours of its border.
    """
    rows, columns = image.shape[-2:]
    rays = F.pad(pixel_grid(height, width), (0, 1), value=1.0) @ (R.double() @ torch.linalg.inv(K.double())).mT[:, None]
    longitude = torch.atan2(rays[..., 0], rays[..., 2])
    latitude = torch.atan2(-rays[..., 1], rays[..., ::2].norm(dim=-1))
    per_radian = columns / (2 * pi)
    pixels = torch.stack([longitude * per_radian + columns / 2 + 0.5, rows / 2 - 0.5 - latitude * per_radian], -1)
    padded = F.pad(image[None], (1, 1, 0, 0), mode="circular")
    return torch.cat([sample(padded, view[None], padding="border") for view in pixels])


def ring_pairs(views: int) -> list[tuple[int, int]]:
    """Return the index pairs (0, 1), (1, 2), ..., (views - 1, 0) of adjacent views in a ring; [] for one view."""
    return [(n, (n + 1) % views) for n in range(views)] if views > 1 else []
