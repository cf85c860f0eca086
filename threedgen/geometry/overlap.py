"""Overlap of views with known depth: key frames, and a check whether poses are camera-to-world or the inverse.

``depth`` (N, H, W) is measured along the viewing axis, 0 = unknown. A key frame overlaps the previous key frame by
about two thirds (MVDiffusion, arXiv 2307.01097, section 4.2).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from threedgen.config.errors import ConfigError

from .cameras import Cameras
from .poses import Poses
from .warp import pixel_grid, reproject, sample_nearest, to_opencv

DEPTH_TOLERANCE = 0.05
"""Largest relative difference between two depths of one point that count as equal."""
MAX_PAIRS, FRAME_GAPS = 6, (1, 4, 16)
"""Number of frame pairs per gap, and gaps in frames between the two frames of a pair.

If the camera moves slowly, frames with a small gap agree even with inverted poses.
"""
MIN_AGREEMENT, MIN_MARGIN, MIN_RATIO = 0.3, 0.1, 2
"""A pair supports one kind of poses (c2w or w2c) if its agreement is above both limits.

The limits are MIN_AGREEMENT, and MIN_RATIO * (the agreement for the other kind) + MIN_MARGIN.
"""
MIN_SUPPORT = 0.25
"""Smallest fraction of pairs that must support the inverted poses before an error is raised."""


def overlap_fractions(depth: Tensor, c2w: Tensor, K: Tensor, behind: bool = False) -> Tensor:
    """Return the overlaps (F, F), float64, of all pairs of F views.

    The overlap is the fraction of pixels of one view that reproject into the image of the other view. Of the two
    directions the smaller fraction counts, so the matrix is symmetric.

    Args:
        depth: (F, H, W) along the viewing axis, 0 = unknown.
        c2w, K: (F, 4, 4) camera-to-world with OpenCV axes, and (F, 3, 3), as returned by ``warp.to_opencv``.
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
    """Return the overlap, in [0, 1], of the views with the indices ``one`` and ``other``; depth is (N, H, W)."""
    K, c2w = to_opencv(cameras.select([one, other]))
    return float(overlap_fractions(depth[[one, other]], c2w, K)[0, 1])


def key_frames(depth: Tensor, cameras: Cameras, min_overlap: float) -> list[int]:
    """Select key frames and return their frame numbers, beginning with 0. ``depth`` is (N, H, W).

    Frames are compared with the current key frame in order, beginning two frames after it. At the first overlap below
    ``min_overlap``, the frame before becomes the next key frame.
    """
    keys = [0]
    for number in range(2, len(depth)):
        if overlap(depth, cameras, keys[-1], number) < min_overlap:
            keys.append(number - 1)
    return keys


def spread_pairs(count: int) -> list[int]:
    """Return frame numbers [a0, b0, a1, b1, ...] of pairs ``FRAME_GAPS`` apart, spread evenly over ``count`` frames."""
    pairs = list[int]()
    for gap in (each for each in FRAME_GAPS if each < count):
        first = np.unique(np.linspace(0, count - 1 - gap, min(MAX_PAIRS, count - gap)).round().astype(int))
        pairs += [int(n) for one in first for n in (one, one + gap)]
    return pairs


def depth_agreement(depth: Tensor, cameras: Cameras) -> Tensor:
    """Return for P pairs of views (2 i, 2 i + 1) the fraction (P,) of pixels of the first view that agree.

    A pixel agrees if its point has an equal depth in the second view, within ``DEPTH_TOLERANCE``. depth is (2 P, H, W).
    """
    K, c2w = (part.double() for part in to_opencv(cameras))
    pixels, depth, fractions = pixel_grid(*depth.shape[1:]).flatten(0, 1), depth.double(), []
    for a in range(0, len(depth), 2):
        b = a + 1
        projected, z = reproject(pixels, depth[a].flatten(), K[a], c2w[a], K[b], c2w[b])
        sampled = sample_nearest(depth[b], projected)
        fractions.append(((sampled > 0) & ((sampled - z).abs() < DEPTH_TOLERANCE * z)).double().mean())
    return torch.stack(fractions)


def check_pose_convention(
    read: Callable[[Poses], tuple[Tensor, Cameras]], convention: Poses, name: str, key: str = ""
) -> None:
    """Raise ConfigError if the depths of frames agree only with the inverse of the configured poses.

    Args:
        read: takes "c2w" or "w2c" as the kind of the stored poses, and returns depth (2 P, H, W) and cameras of the
            frames ``spread_pairs``.
        convention: configured kind of the stored poses.
        name, key: name of the pose source and config key, for the error.
    """
    inverse: Poses = "w2c" if convention == "c2w" else "c2w"
    configured, inverted = (depth_agreement(*read(poses)) for poses in (convention, inverse))
    for_configured, for_inverted = _supports(configured, inverted), _supports(inverted, configured)
    if for_inverted.double().mean() >= MIN_SUPPORT and for_inverted.sum() > MIN_RATIO * for_configured.sum():
        before, after = (float(fractions[for_inverted].mean()) for fractions in (configured, inverted))
        raise ConfigError(
            f"the poses of {name} are probably {'world-to-camera' if inverse == 'w2c' else 'camera-to-world'}: depths "
            f"of nearby frames agree for {before:.0%} of pixels with poses={convention}, {after:.0%} with "
            f"poses={inverse}. Set poses={inverse}.",
            key,
        )


def _supports(fractions: Tensor, other: Tensor) -> Tensor:
    return (fractions > MIN_AGREEMENT) & (fractions > MIN_RATIO * other + MIN_MARGIN)
