"""PSNR of neighbouring views where they overlap, and its ratio to the PSNR of true views.

The metric is from MVDiffusion (arXiv 2307.01097, section 5.1), which first resizes panorama views, 45 degrees apart, to
1024 pixels. Warping has errors, so true views, which are consistent, have a finite overlap PSNR too: the reference.

Images are (V, H, W, 3) in [0, 1]. Camera-to-world poses and rotations have OpenCV axes (x right, y down, z forward).
Pixels are (x, y), and the first pixel centre is (0, 0). `geometry.warp.to_opencv` converts `Cameras` to this form.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from threedgen.geometry.images import psnr
from threedgen.geometry.panorama import ring_pairs
from threedgen.geometry.warp import apply_homography, homography, inside, pixel_grid, reproject, sample, sample_nearest

from .figures import Values, mean

DEPTH_ERROR = 0.5
"""Maximum difference in metres between the depth of a point, projected into another view, and the depth map of this
view. A point with a larger difference counts as occluded there."""


def warped(image: Tensor, pixels: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Warp an image (H, W, 3) into another view of the same size.

    Args:
        image: image to warp.
        pixels: (H W, 2), position (x, y) in ``image`` of each pixel of the other view, in row-major order. The centre
            of the first pixel is (0, 0).
        visible: (H W,), bool, whether ``image`` shows the point at each pixel of the other view.

    Returns:
        Warped image (H, W, 3), and bool mask (H, W) of its pixels that are visible and inside ``image``. Pixels outside
        the mask are 0.
    """
    height, width = image.shape[:2]
    found = sample(image.permute(2, 0, 1)[None], pixels.view(1, height, width, 2))[0].permute(1, 2, 0)
    mask = (inside(pixels, height, width) & visible).view(height, width)
    return found * mask[..., None], mask


def warp_by_homography(image: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    """Warp an image (h, w, 3) into another view of the same size by the homography ``H``.

    ``H`` (3, 3) maps homogeneous pixels (x, y, 1) of the other view to pixels of ``image``; the centre of the first
    pixel is (0, 0). Returns the warped image (h, w, 3), and a bool mask (h, w) that is True where the source pixel is
    inside ``image``. Other pixels are 0.
    """
    return warped(image, *apply_homography(H, pixel_grid(*image.shape[:2]).flatten(0, 1)))


def panorama_overlap(views: Tensor, K: Tensor, R: Tensor) -> list[float | None]:
    """Warp each view i + 1 of a panorama into view i, and compare the two. Return V PSNRs in dB.

    A PSNR is None if the two views do not overlap.

    Args:
        views: images (V, H, W, 3) in [0, 1]. View 0 follows the last view.
        K: intrinsics (3, 3) or (V, 3, 3), in pixels of the views; the centre of the first pixel is (0, 0).
        R: camera-to-world rotations (V, 3, 3), OpenCV axes.
    """
    views, K, R = views.cpu().float(), K.cpu().double().expand(len(R), 3, 3), R.cpu().double()
    return [
        _masked_psnr(views[one], *warp_by_homography(views[other], homography(K[one], R[one], K[other], R[other])))
        for one, other in ring_pairs(len(views))
    ]


def depth_overlap(views: Tensor, depth: Tensor, K: Tensor, c2w: Tensor) -> list[float | None]:
    """Warp each view i + 1 of a camera path into view i, and compare the two. Return V - 1 PSNRs in dB.

    A PSNR is None if the two views do not overlap.

    Args:
        views: images (V, H, W, 3) in [0, 1].
        depth: depth (V, H, W) along the viewing axis in metres, 0 where unknown. The warp uses the depth of view i. The
            depth of view i + 1 tells which points are occluded in it.
        K: intrinsics (3, 3) or (V, 3, 3), in pixels of the views; the centre of the first pixel is (0, 0).
        c2w: camera-to-world poses (V, 4, 4), OpenCV axes, in metres.
    """
    views, depth, c2w = views.cpu().float(), depth.cpu().double(), c2w.cpu().double()
    K, pixels = K.cpu().double().expand(len(views), 3, 3), pixel_grid(*depth.shape[1:]).flatten(0, 1)
    found = []
    for one, other in pairwise(range(len(views))):
        target, expected = reproject(pixels, depth[one].flatten(), K[one], c2w[one], K[other], c2w[other])
        actual = sample_nearest(depth[other], target)
        visible = (actual > 0) & ((actual - expected).abs() <= DEPTH_ERROR)
        found.append(_masked_psnr(views[one], *warped(views[other], target, visible)))
    return found


def given_view(views: Tensor, given: Tensor, K: Tensor, R: Tensor) -> dict[str, float | None]:
    """Compare a generated panorama with the image that the model received as view 0.

    Args:
        views: generated images (V, H, W, 3) in [0, 1]. View 0 follows the last view.
        given: condition image (H, W, 3) in [0, 1].
        K: intrinsics (3, 3) or (V, 3, 3), in pixels of the views; the centre of the first pixel is (0, 0).
        R: camera-to-world rotations (V, 3, 3), OpenCV axes.

    Returns:
        "given": PSNR between ``given`` and view 0. "beside_given": PSNR between ``given`` and a neighbour of view 0
            where they overlap, mean over the neighbours that overlap it; None if neither does. Both are in dB.
    """
    ring = [len(views) - 1, 0, 1]
    around = panorama_overlap(torch.stack([views[-1], given, views[1]]), K.expand(len(R), 3, 3)[ring], R[ring])
    return {"given": psnr(np.asarray(given), np.asarray(views[0])), "beside_given": mean(around[:2])}


def overlap_ratio(generated: Values, truth: Values) -> float | None:
    above, below = mean(generated), mean(truth)
    return above / below if above is not None and below else None


def _masked_psnr(image: Tensor, other: Tensor, mask: Tensor) -> float | None:
    return psnr(np.asarray(image[mask]), np.asarray(other[mask])) if bool(mask.any()) else None
