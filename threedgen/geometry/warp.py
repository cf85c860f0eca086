"""Mapping of pixels between views: homographies of rotated cameras, reprojection with known depth, and sampling.

Unlike in `Cameras`, pixels are (x, y) with the first pixel centre at (0, 0), so a centred cx is (W - 1) / 2, and poses
are camera-to-world with OpenCV axes (x right, y down, z forward); `to_opencv` converts. Depth is measured along the
viewing axis in world units, 0 = unknown.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.poses import Poses, opencv_axes, world_to_camera
from threedgen.run.memory import to_device

INVALID_PIXEL = -1e6  # x and y of reprojected pixels with unknown depth
EPSILON = 1e-6  # world units, added to depths before a division


def to_opencv(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Convert cameras to intrinsics K (B, 3, 3) and camera-to-world poses (B, 4, 4) with OpenCV axes.

    K is for pixels with the first pixel centre at (0, 0), as in all functions of this module.
    """
    K = cameras.K.clone()
    K[:, :2, 2] -= 0.5
    return K, opencv_axes(cameras.c2w)


def pixel_grid(height: int, width: int) -> Tensor:
    """Return the pixel centres (H, W, 2) of an image as (x, y), float64; the first centre is (0, 0)."""
    x, y = torch.arange(width, dtype=torch.float64), torch.arange(height, dtype=torch.float64)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def homography(K_from: Tensor, R_from: Tensor, K_to: Tensor, R_to: Tensor) -> Tensor:
    """Return the matrix (..., 3, 3) that maps pixels of camera "from" to pixels of camera "to" at the same position.

    It is K_to R_to^-1 R_from K_from^-1, for homogeneous pixels (x, y, 1). Intrinsics K and camera-to-world rotations R,
    with OpenCV axes, are (..., 3, 3).
    """
    return K_to @ R_to.mT @ R_from @ torch.linalg.inv(K_from)


def apply_homography(H: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Map pixels (..., N, 2), or world directions (..., N, 3), by a matrix H (..., 3, 3) to pixels of a target camera.

    For pixels (x, y) of a source camera at the same position, `homography` computes H. For directions, H is the target
    camera's K times its world-to-camera rotation.

    Returns pixels (..., N, 2), and a bool mask (..., N) that is True for points in front of the target camera.
    """
    rays = pixels if pixels.shape[-1] == 3 else F.pad(pixels, (0, 1), value=1.0)
    mapped = rays @ H.mT
    return mapped[..., :2] / mapped[..., 2:], mapped[..., 2] > 0


def unproject(pixels: Tensor, depth: Tensor, K: Tensor, c2w: Tensor) -> Tensor:
    """Return the world points (N, 3) of pixels (N, 2), (x, y), with depths (N,) along the viewing axis, for one camera.

    K (3, 3) is for pixels with the first centre at (0, 0), and the camera-to-world pose c2w (4, 4) has OpenCV axes (x
    right, y down, z forward), as from `to_opencv`.
    """
    rays = F.pad(pixels, (0, 1), value=1.0) @ torch.linalg.inv(K).mT
    return (rays * depth[:, None]) @ c2w[:3, :3].mT + c2w[:3, 3]


def project(points: Tensor, K: Tensor, c2w: Tensor) -> tuple[Tensor, Tensor]:
    """Project world points (N, 3) to pixels (N, 2) and depths (N,) of one camera with K (3, 3) and c2w (4, 4).

    Pixels are (x, y) with the first centre at (0, 0); c2w has OpenCV axes. The depth is negative behind the camera.
    """
    w2c = world_to_camera(c2w)
    local = (points @ w2c[:3, :3].mT + w2c[:3, 3]) @ K.mT
    return local[:, :2] / (local[:, 2:] + EPSILON), local[:, 2]


def reproject(
    pixels: Tensor, depth: Tensor, K: Tensor, c2w: Tensor, K_to: Tensor, c2w_to: Tensor
) -> tuple[Tensor, Tensor]:
    """Map pixels (N, 2) with depths (N,) of camera (K, c2w) to pixels of camera (K_to, c2w_to).

    K is (3, 3), and c2w (4, 4) is a camera-to-world pose with OpenCV axes. Returns pixels (N, 2), -1e6
    (`INVALID_PIXEL`) where the input depth is 0 = unknown, and depths (N,) in the second camera, negative behind it.
    """
    projected, z = project(unproject(pixels, depth, K, c2w), K_to, c2w_to)
    return torch.where(depth[:, None] > 0, projected, INVALID_PIXEL), z


def inside(pixels: Tensor, height: int, width: int) -> Tensor:
    """Return a bool mask (...), True for pixels (..., 2), (x, y), that are inside an image of height x width pixels.

    Inside is the range from the first pixel centre, (0, 0), to the last one, (width - 1, height - 1), both included.
    """
    return ((pixels >= 0) & (pixels <= pixels.new_tensor([width - 1, height - 1]))).all(-1)


def sample(
    images: Tensor,
    pixels: Tensor,
    mode: Literal["bilinear", "nearest", "bicubic"] = "bilinear",
    padding: Literal["zeros", "border"] = "zeros",
) -> Tensor:
    """Sample images (N, C, H, W) at `pixels` (N, h, w, 2) in (x, y). Returns (N, C, h, w) in the dtype of the images.

    The centre of the first pixel is (0, 0). `padding` determines values outside of an image: 0 ("zeros"), or the value
    of the nearest border pixel ("border").
    """
    height, width = images.shape[-2:]
    pixels = pixels.double() if images.dtype == torch.float64 else pixels.float()  # half precision would shift them
    # align_corners=False also works for images that are one pixel wide
    size = to_device(torch.tensor([width, height], dtype=pixels.dtype), pixels.device)
    grid = (pixels + 0.5) / size * 2 - 1
    grid = grid.nan_to_num(nan=-9.0).clamp(-9.0, 9.0)  # far outside, finite
    return F.grid_sample(images.to(grid.dtype), grid, mode, padding, align_corners=False).to(images.dtype)


def sample_nearest(image: Tensor, pixels: Tensor) -> Tensor:
    """Sample an image (H, W) at the pixel centres nearest to `pixels` (N, 2), (x, y); the first centre is (0, 0).

    Returns (N,), 0 outside the image.
    """
    nearest = pixels.round()
    visible = inside(nearest, *image.shape)
    x, y = torch.where(visible[:, None], nearest, 0.0).long().unbind(-1)
    return torch.where(visible, image[y, x], 0.0)


# --- overlap of views

DEPTH_TOLERANCE = 0.05  # largest relative difference between two depths that count as equal
MAX_PAIRS, FRAME_GAPS = 6, (1, 4, 16)
"""Maximum number of pairs of frames per gap, and the gaps: distances, in frames, between the two frames of a pair.

There are several gaps because the depths of near frames can agree even with wrong poses.
"""
MIN_AGREEMENT, MIN_MARGIN, MIN_RATIO = 0.3, 0.1, 2
"""Limits for the test whether stored poses are camera-to-world or world-to-camera.

A pair of frames supports one of the two kinds if its `depth_agreement`, with the poses read as this kind, is above
MIN_AGREEMENT, and above MIN_RATIO * (agreement with the other kind) + MIN_MARGIN.
"""
MIN_SUPPORT = 0.25  # minimum fraction of pairs that support the inverted poses, for an error


def overlap_fractions(depth: Tensor, c2w: Tensor, K: Tensor, behind: bool = False) -> Tensor:
    """Return the overlaps (F, F), float64 in [0, 1], of all pairs of F views.

    The overlap of two views is the smaller of two fractions: the fraction of the pixels of the first view that
    reproject into the image of the second, and the fraction of those of the second that reproject into the first.

    Args:
        depth: (F, H, W), along the viewing axis in world units, 0 = unknown. Unknown pixels never count as overlap.
        c2w, K: (F, 4, 4) camera-to-world poses with OpenCV axes, and (F, 3, 3) intrinsics, from `to_opencv`.
        behind: also count points behind the other camera, as in the training of the released MVDiffusion weights.
    """
    overlaps = torch.ones(len(depth), len(depth), dtype=torch.float64)
    pixels = pixel_grid(*depth.shape[1:]).flatten(0, 1)
    depth, c2w, K, size = depth.double(), c2w.double(), K.double(), torch.tensor(depth.shape[:0:-1])
    for one in range(len(depth)):
        for other in set(range(len(depth))) - {one}:
            projected, z = reproject(pixels, depth[one].flatten(), K[one], c2w[one], K[other], c2w[other])
            within = ((projected >= 0) & (projected < size)).all(-1)  # up to W and H, as for the released weights
            overlaps[one, other] = (within & (behind | (z > 0))).double().mean()
    return torch.minimum(overlaps, overlaps.T)


def overlap(depth: Tensor, cameras: Cameras, one: int, other: int) -> float:
    """Return the overlap in [0, 1] of two of N views, given by their indices `one` and `other`.

    It is the smaller of two fractions: the fraction of the pixels of view `one` that reproject into the image of view
    `other`, and the fraction of the pixels of `other` that reproject into `one`. `depth` is (N, H, W) along the viewing
    axis in world units, 0 = unknown. A pixel does not reproject into the other image if its depth is unknown, or if its
    point is behind the other camera.
    """
    K, c2w = to_opencv(cameras.select([one, other]))
    return float(overlap_fractions(depth[[one, other]], c2w, K)[0, 1])


def key_frames(depth: Tensor, cameras: Cameras, min_overlap: float) -> list[int]:
    """Return the indices of the key frames of a video of N frames, which MVDiffusion (section 4.2) generates first.

    Frame 0 is the first key frame. After a key frame k, let m be the first frame from k + 2 on whose overlap with k is
    below `min_overlap`. Frame m - 1, at the earliest k + 1, is the next key frame. If no such m exists, k is the last
    key frame.

    The overlap of two frames is the smaller of two fractions: the fraction of the pixels of one that reproject into the
    image of the other, and the reverse. `depth` is (N, H, W) along the viewing axis in world units; pixels with depth 0
    (unknown) are never reprojected.
    """
    keys = [0]
    for number in range(2, len(depth)):
        if overlap(depth, cameras, keys[-1], number) < min_overlap:
            keys.append(number - 1)
    return keys


def spread_pairs(count: int) -> list[int]:
    """Return frame indices [a0, b0, a1, b1, ...]: pairs (a, b) that are spread evenly over `count` frames.

    For each of the distances b - a = 1, 4 and 16 frames (`FRAME_GAPS`) that is below `count`, in this order, there are
    at most 6 pairs (`MAX_PAIRS`).
    """
    pairs = list[int]()
    for gap in (each for each in FRAME_GAPS if each < count):
        first = np.unique(np.linspace(0, count - 1 - gap, min(MAX_PAIRS, count - gap)).round().astype(int))
        pairs += [int(n) for one in first for n in (one, one + gap)]
    return pairs


def depth_agreement(depth: Tensor, cameras: Cameras) -> Tensor:
    """Return for each of P pairs of views the fraction (P,) of the first view's pixels with equal depth in both views.

    Pair i has the views 2 i and 2 i + 1. A pixel of the first view is reprojected into the second. Its depth there and
    the second view's `depth` at this place count as equal if they differ by less than 5% (`DEPTH_TOLERANCE`). `depth`
    is (2 P, H, W) along the viewing axis in world units, 0 = unknown. A pixel whose depth is unknown in a view, or that
    lies outside of the second image, counts as not equal.
    """
    K, c2w = (part.double() for part in to_opencv(cameras))
    pixels, depth, fractions = pixel_grid(*depth.shape[1:]).flatten(0, 1), depth.double(), []
    for a in range(0, len(depth), 2):
        projected, z = reproject(pixels, depth[a].flatten(), K[a], c2w[a], K[a + 1], c2w[a + 1])
        sampled = sample_nearest(depth[a + 1], projected)
        fractions.append(((sampled > 0) & ((sampled - z).abs() < DEPTH_TOLERANCE * z)).double().mean())
    return torch.stack(fractions)


def check_pose_convention(
    read: Callable[[Poses], tuple[Tensor, Cameras]], convention: Poses, name: str, key: str = ""
) -> None:
    """Raise ConfigError if depths of nearby frames agree much better with inverted poses than with configured ones.

    The user has then probably confused camera-to-world and world-to-camera poses. Pairs of nearby frames are read with
    the configured convention and with the inverse one. The pixels of a pair's first frame are reprojected into its
    second frame. The agreement is the fraction of them whose depth there equals the second frame's depth up to 5 %
    (`depth_agreement`). The error is raised if at least a quarter of all pairs clearly support the inverse convention,
    and more than twice as many pairs as support the configured one. A pair supports a convention if its agreement a
    with it is above 0.3 and above 2 b + 0.1, where b is its agreement with the other convention.

    Args:
        read: function that reads P pairs of nearby frames, chosen by `spread_pairs`. Its argument, "c2w" or "w2c", says
            how to interpret the stored poses. It returns depths (2 P, H, W) in world units and 2 P cameras; frames 2 i
            and 2 i + 1 are a pair.
        convention: configured convention of the stored poses, camera-to-world ("c2w") or world-to-camera ("w2c").
        name, key: name of the data set and config key, for the error.
    """
    inverse: Poses = "w2c" if convention == "c2w" else "c2w"
    configured, inverted = (depth_agreement(*read(poses)) for poses in (convention, inverse))

    def supports(one: Tensor, other: Tensor) -> Tensor:
        return (one > MIN_AGREEMENT) & (one > MIN_RATIO * other + MIN_MARGIN)

    for_inverted = supports(inverted, configured)
    if for_inverted.double().mean() < MIN_SUPPORT:
        return
    if for_inverted.sum() > MIN_RATIO * supports(configured, inverted).sum():
        before, after = (f"{float(fractions[for_inverted].mean()):.0%}" for fractions in (configured, inverted))
        raise ConfigError(
            f"the poses of {name} are probably the inverse of poses={convention}: depths of nearby frames agree for "
            f"{before} of pixels with it, {after} with poses={inverse}. Set poses={inverse}.",
            key,
        )
