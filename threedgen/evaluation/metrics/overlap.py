"""PSNR of neighbouring views where they overlap, and its ratio to that of true views (MVDiffusion, arXiv 2307.01097,
section 5.1). Warping errors keep true views from being perfect.

Cameras and pixels are those of ``threedgen.geometry.warp`` (``warp.to_opencv`` converts ours); images (V, H, W, 3) in
[0, 1]. The paper resizes panorama views, which are 45 degrees apart, to 1024 pixels first.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from threedgen.geometry.images import psnr
from threedgen.geometry.panorama import ring_pairs
from threedgen.geometry.warp import apply_homography, homography, inside, pixel_grid, reproject, sample, sample_nearest

from .figures import Values, mean

DEPTH_ERROR = 0.5
"""Largest difference in metres between the reprojected and the actual depth of a visible point."""


def warped(image: Tensor, pixels: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Sample an image (H, W, 3) at the pixels (H W, 2) of another view.

    Args:
        visible: (H W,), bool.

    Returns:
        Samples (H, W, 3), 0 where not visible; mask (H, W) of the pixels that are visible and inside the image.
    """
    height, width = image.shape[:2]
    found = sample(image.permute(2, 0, 1)[None], pixels.view(1, height, width, 2))[0].permute(1, 2, 0)
    mask = (inside(pixels, height, width) & visible).view(height, width)
    return found * mask[..., None], mask


def turned_into(image: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """Warp a view (H, W, 3) into another, whose pixels the homography ``H`` (3, 3) maps to its own; see `warped`."""
    return warped(image, *apply_homography(H, pixel_grid(*image.shape[:2]).flatten(0, 1)))


def panorama_overlap(views: Tensor, K: Tensor, R: Tensor) -> list[float | None]:
    """Return the PSNR in dB of each view i and view i + 1 warped into it, the last with the first.

    Args:
        K: (3, 3) or (V, 3, 3).
        R: (V, 3, 3).

    Returns:
        One value per pair; None for a pair without a common pixel.
    """
    views, K, R = views.cpu().float(), K.cpu().double().expand(len(R), 3, 3), R.cpu().double()
    return [
        _masked_psnr(views[one], *turned_into(views[other], homography(K[one], R[one], K[other], R[other])))
        for one, other in ring_pairs(len(views))
    ]


def depth_overlap(
    views: Tensor, depth: Tensor, K: Tensor, c2w: Tensor, max_error: float = DEPTH_ERROR
) -> list[float | None]:
    """Return the PSNR in dB of each view i and view i + 1 warped into it by the depth of view i.

    Args:
        depth: (V, H, W), 0 where unknown.
        K: (3, 3) or (V, 3, 3).
        c2w: (V, 4, 4).
        max_error: a pixel counts if its depth in the other camera is within ``max_error`` of the depth there.

    Returns:
        One value per pair; None for a pair without such a pixel.
    """
    views, depth, c2w = views.cpu().float(), depth.cpu().double(), c2w.cpu().double()
    K, pixels = K.cpu().double().expand(len(views), 3, 3), pixel_grid(*depth.shape[1:]).flatten(0, 1)
    found = []
    for one, other in pairwise(range(len(views))):
        target, expected = reproject(pixels, depth[one].flatten(), K[one], c2w[one], K[other], c2w[other])
        actual = sample_nearest(depth[other], target)
        visible = (actual > 0) & ((actual - expected).abs() <= max_error)
        found.append(_masked_psnr(views[one], *warped(views[other], target, visible)))
    return found


def given_view(views: Tensor, given: Tensor, K: Tensor, R: Tensor) -> dict[str, float | None]:
    """Compare view 0 of a panorama (V, H, W, 3) with the image (H, W, 3) that was given for it. PSNR in dB.

    Returns:
        given: view 0 and the given image; given_overlap: the same where the neighbouring views overlap it; beside:
        overlap of view 0 with its two neighbours; beside_given: overlap of the given image with them.
    """
    K, R = K.cpu().double().expand(len(R), 3, 3), R.cpu().double()
    neighbours = [len(views) - 1, 0, 1]
    masks = [turned_into(views[n].float(), homography(K[0], R[0], K[n], R[n]))[1] for n in (1, len(views) - 1)]

    def beside(view: Tensor) -> float | None:
        images = torch.stack([views[neighbours[0]], view, views[1]])
        return mean(panorama_overlap(images, K[neighbours], R[neighbours])[:2])

    return {
        "given": psnr(np.asarray(given), np.asarray(views[0])),
        "given_overlap": _masked_psnr(views[0], given, torch.stack(masks).any(0)),
        "beside": beside(views[0]),
        "beside_given": beside(given),
    }


def overlap_ratio(generated: Values, truth: Values) -> float | None:
    """Return the mean PSNR of generated views divided by that of true ones; None if either is undefined."""
    above, below = mean(generated), mean(truth)
    return above / below if above is not None and below else None


def _masked_psnr(image: Tensor, other: Tensor, mask: Tensor) -> float | None:
    return psnr(np.asarray(image[mask]), np.asarray(other[mask])) if bool(mask.any()) else None
