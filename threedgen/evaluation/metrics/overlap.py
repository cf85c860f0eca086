"""Measures how well views agree where they show the same: the PSNR of their overlap (MVDiffusion, arXiv 2307.01097,
section 5.1), and its ratio to that of true views, which the warp and the world itself keep from being perfect.

Cameras and pixels are those of ``threedgen.geometry.warp`` (``warp.to_opencv`` converts ours); pictures (V,H,W,3) in
[0, 1]. The paper brings panorama views to 1024 pixels a side first, and its views are 45 degrees apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from threedgen.geometry.images import psnr
from threedgen.geometry.panorama import ring_pairs
from threedgen.geometry.warp import apply_homography, homography, inside, pixel_grid, reproject, sample, sample_nearest

from .figures import mean

DEPTH_ERROR = 0.5
"""Metres by which the depth of a point may miss that of the other view; else one of them does not see it."""


def warped(image: Tensor, pixels: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Reads a picture (H,W,3) at pixels (H W,2) of the grid of another: (H,W,3), 0 where it is not ``seen``, and where
    all that is read lies in the picture: (H,W), bool."""
    height, width = image.shape[:2]
    found = sample(image.permute(2, 0, 1)[None], pixels.view(1, height, width, 2))[0].permute(1, 2, 0)
    mask = (inside(pixels, height, width) & seen).view(height, width)
    return found * mask[..., None], mask


def turned_into(image: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """Warps a view (H,W,3) into another, whose pixels ``H`` (3,3) takes to its own; see ``warped``."""
    return warped(image, *apply_homography(H, pixel_grid(*image.shape[:2]).flatten(0, 1)))


def panorama_overlap(views: Tensor, K: Tensor, R: Tensor) -> list[float | None]:
    """Measures the PSNR, in dB, of each view i and view i + 1 warped into it, the last with the first.

    K (3,3) or (V,3,3), R (V,3,3). None for a pair without a common pixel.
    """
    views, K, R = views.cpu().float(), K.cpu().double().expand(len(R), 3, 3), R.cpu().double()
    return [
        _agreement(views[one], *turned_into(views[other], homography(K[one], R[one], K[other], R[other])))
        for one, other in ring_pairs(len(views))
    ]


def depth_overlap(
    views: Tensor, depth: Tensor, K: Tensor, c2w: Tensor, most: float = DEPTH_ERROR
) -> list[float | None]:
    """Measures the PSNR, in dB, of each view i and view i + 1 warped into it by the depth of view i.

    depth (V,H,W), 0 where it is unknown; K (3,3) or (V,3,3); c2w (V,4,4). Pixels count whose depth in the other camera
    is within ``most`` of what is seen there. None for a pair without one.
    """
    views, depth, c2w = views.cpu().float(), depth.cpu().double(), c2w.cpu().double()
    K, pixels = K.cpu().double().expand(len(views), 3, 3), pixel_grid(*depth.shape[1:]).flatten(0, 1)
    found = []
    for one, other in pairwise(range(len(views))):
        there, expected = reproject(pixels, depth[one].flatten(), K[one], c2w[one], K[other], c2w[other])
        seen = sample_nearest(depth[other], there)
        both = (seen > 0) & ((seen - expected).abs() <= most)
        found.append(_agreement(views[one], *warped(views[other], there, both)))
    return found


def given_view(views: Tensor, given: Tensor, K: Tensor, R: Tensor) -> dict[str, float | None]:
    """Measures, in dB, what became of the picture (H,W,3) that was given for view 0 of a panorama (V,H,W,3).

    given: view 0 against it; given_overlap: the same where the views beside it see something of it; beside: the
    overlap of view 0, as it was drawn, with these two; beside_given: that of the picture itself with them.
    """
    K, R = K.cpu().double().expand(len(R), 3, 3), R.cpu().double()
    seen = torch.stack(
        [turned_into(views[n].float(), homography(K[0], R[0], K[n], R[n]))[1] for n in (1, len(views) - 1)]
    ).any(0)
    near = [len(views) - 1, 0, 1]

    def beside(view: Tensor) -> float | None:
        return mean(panorama_overlap(torch.stack([views[near[0]], view, views[1]]), K[near], R[near])[:2])

    return {
        "given": psnr(np.asarray(given), np.asarray(views[0])),
        "given_overlap": _agreement(views[0], given, seen),
        "beside": beside(views[0]),
        "beside_given": beside(given),
    }


def overlap_ratio(generated: Sequence[float | None], truth: Sequence[float | None]) -> float | None:
    """Divides the mean PSNR of generated views by that of true ones; None if there is no figure of either."""
    above, below = mean(generated), mean(truth)
    return above / below if above is not None and below else None


def _agreement(image: Tensor, other: Tensor, mask: Tensor) -> float | None:
    return psnr(np.asarray(image[mask]), np.asarray(other[mask])) if bool(mask.any()) else None
