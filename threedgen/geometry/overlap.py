"""What views of known depth have in common: overlap, key frames, and whether poses are what they are taken for.

``depth`` (N,H,W) is along the viewing axis, 0 where it is unknown. Key frames are those that overlap the one before by
about two thirds (MVDiffusion, arXiv 2307.01097, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from threedgen.config.errors import ConfigError

from .cameras import Cameras
from .poses import Poses
from .warp import look_up, of_cameras, pixel_grid, reproject

AGREE = 0.05
"""Share by which depths of the same point, seen from two cameras, may differ."""
PAIRS, APART = 6, (1, 4, 16)
"""Pairs by which is told what poses are, of frames so many steps apart: on a slow path neighbours see the same,
whatever the poses are taken for."""
MUCH, CLEARLY, TIMES = 0.3, 0.1, 2
"""A pair tells what poses are if they agree by more than the first one way, and by so much and so often more than the
other way: what agrees by chance is less."""
ENOUGH = 0.25
"""Share of the pairs that have to tell that poses are inverted."""


def overlap_fractions(depth: Tensor, c2w: Tensor, K: Tensor, behind: bool = False) -> Tensor:
    """Measures how much of each view's picture another one has, the lesser of both ways: (F,F), 1 on the diagonal.

    c2w (F,4,4), K (F,3,3): as ``warp`` takes them.  behind: what lies behind a camera counts where the line through it
    meets the picture, as released weights of MVDiffusion know it; else, of a path that turns around, opposite views
    have nothing in common. One pair after the other: memory is that of one map.
    """
    share, pixels = torch.ones(len(depth), len(depth), dtype=torch.float64), pixel_grid(*depth.shape[1:]).flatten(0, 1)
    depth, c2w, K, size = depth.double(), c2w.double(), K.double(), torch.tensor(depth.shape[:0:-1])
    for one in range(len(depth)):
        for other in set(range(len(depth))) - {one}:
            there, z = reproject(pixels, depth[one].flatten(), K[one], c2w[one], K[other], c2w[other])
            within = ((there >= 0) & (there < size)).all(-1)  # up to W and H, by which released weights chose views
            share[one, other] = (within & (behind | (z > 0))).double().mean()
    return torch.minimum(share, share.T)


def overlap(depth: Tensor, cameras: Cameras, one: int, other: int) -> float:
    """Measures the share of the picture that two views have in common, the lesser of both ways."""
    K, c2w = of_cameras(cameras.select([one, other]))
    return float(overlap_fractions(depth[[one, other]], c2w, K)[0, 1])


def key_frames(depth: Tensor, cameras: Cameras, least: float) -> list[int]:
    """Chooses key frames of a path: the first, and after each the last one that overlaps it by ``least`` or more,
    before the overlap falls below that."""
    found = [0]
    for number in range(2, len(depth)):
        if overlap(depth, cameras, found[-1], number) < least:
            found.append(number - 1)
    return found


def spread_pairs(count: int) -> list[int]:
    """Lists numbers of frames, of ``count``: pairs of those ``APART`` all along the path, one after the other."""
    pairs = list[int]()
    for apart in (each for each in APART if each < count):
        first = np.unique(np.linspace(0, count - 1 - apart, min(PAIRS, count - apart)).round().astype(int))
        pairs += [int(n) for one in first for n in (one, one + apart)]
    return pairs


def agreement(depth: Tensor, cameras: Cameras) -> Tensor:
    """Measures for each pair of views, one after the other, which share of the points of the first the second sees at
    the same depth."""
    K, c2w = (part.double() for part in of_cameras(cameras))
    pixels, depth, shares = pixel_grid(*depth.shape[1:]).flatten(0, 1), depth.double(), []
    for a in range(0, len(depth), 2):
        b = a + 1
        there, z = reproject(pixels, depth[a].flatten(), K[a], c2w[a], K[b], c2w[b])
        seen = look_up(depth[b], there)
        shares.append(((seen > 0) & ((seen - z).abs() < AGREE * z)).double().mean())
    return torch.stack(shares)


def require_poses(read: Callable[[Poses], tuple[Tensor, Cameras]], said: Poses, name: str, key: str = "") -> None:
    """Raises ConfigError for poses that make sense only if they are inverted.

    read: what poses are taken for -> depth (N,H,W) and cameras of frames, as ``spread_pairs`` chooses them.  said: what
    they were taken for.  name: of what has them.
    """
    right: Poses = "w2c" if said == "c2w" else "c2w"
    given, inverse = (agreement(*read(poses)) for poses in (said, right))
    for_given, for_inverse = tells(given, inverse), tells(inverse, given)
    if for_inverse.double().mean() >= ENOUGH and for_inverse.sum() > TIMES * for_given.sum():
        share, inverted = (float(shares[for_inverse].mean()) for shares in (given, inverse))
        raise ConfigError(
            f"the poses of {name} are {'world-to-camera' if right == 'w2c' else 'camera-to-world'}, it seems: as they "
            f"are, frames near each other share {share:.0%} of their points, inverted {inverted:.0%}; "
            f"give poses={right}",
            key,
        )


def tells(shares: Tensor, other: Tensor) -> Tensor:
    """Which pairs (N,) say that poses are as taken for ``shares``, and not as for ``other``."""
    return (shares > MUCH) & (shares > TIMES * other + CLEARLY)
