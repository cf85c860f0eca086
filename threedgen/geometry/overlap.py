"""Overlap of views with known depth: key frames and a check of the pose convention.

``depth`` (N, H, W) is along the viewing axis, 0 = unknown. Key frames overlap the previous one by about two thirds
(MVDiffusion, arXiv 2307.01097, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from threedgen.config.errors import ConfigError

from .cameras import Cameras
from .poses import Poses
from .warp import pixel_grid, reproject, sample_nearest, to_opencv

DEPTH_TOLERANCE = 0.05
"""Largest relative difference between depths of the same point in two views."""
MAX_PAIRS, FRAME_GAPS = 6, (1, 4, 16)
"""Number of frame pairs per gap for the pose check. On slow paths, adjacent frames agree under both conventions."""
MIN_AGREEMENT, MIN_MARGIN, MIN_RATIO = 0.3, 0.1, 2
"""A pair supports a convention if its agreement exceeds the first, and MIN_RATIO * (the other's) + MIN_MARGIN."""
MIN_SUPPORT = 0.25
"""Smallest fraction of pairs that must support the inverted convention."""


def overlap_fractions(depth: Tensor, c2w: Tensor, K: Tensor, behind: bool = False) -> Tensor:
    """Compute overlaps (F, F): the fraction of pixels that reproject into the other image, minimum of both directions.

    Args:
        depth, c2w, K: (F, H, W), (F, 4, 4) and (F, 3, 3) in the conventions of ``warp``.
        behind: also count points behind the other camera, as the released MVDiffusion weights were trained.
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
    """Compute ``overlap_fractions`` of two views."""
    K, c2w = to_opencv(cameras.select([one, other]))
    return float(overlap_fractions(depth[[one, other]], c2w, K)[0, 1])


def key_frames(depth: Tensor, cameras: Cameras, min_overlap: float) -> list[int]:
    """Select frame 0 and then each last frame whose overlap with the previous key frame is at least ``min_overlap``."""
    keys = [0]
    for number in range(2, len(depth)):
        if overlap(depth, cameras, keys[-1], number) < min_overlap:
            keys.append(number - 1)
    return keys


def spread_pairs(count: int) -> list[int]:
    """Return frame indices [a0, b0, a1, b1, ...] of pairs ``FRAME_GAPS`` apart, spread over a path of ``count``."""
    pairs = list[int]()
    for gap in (each for each in FRAME_GAPS if each < count):
        first = np.unique(np.linspace(0, count - 1 - gap, min(MAX_PAIRS, count - gap)).round().astype(int))
        pairs += [int(n) for one in first for n in (one, one + gap)]
    return pairs


def depth_agreement(depth: Tensor, cameras: Cameras) -> Tensor:
    """Compute for P view pairs (2 i, 2 i + 1) the fraction (P,) of first-view pixels with equal depth in the second."""
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
    """Raise ConfigError if depths agree between frames only with the inverse of the poses.

    Args:
        read: returns depth (N, H, W) and cameras of the frames of ``spread_pairs`` for a convention.
        convention: configured convention of the poses.
        name, key: pose source and config key for errors.
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
