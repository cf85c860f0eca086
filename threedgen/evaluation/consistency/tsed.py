"""Measures TSED: how many pairs of neighbouring views obey the epipolar geometry of their cameras (Yu et al. 2023,
"Long-Term Photometric Consistent Novel View Synthesis with Diffusion Models", section 4.2).

Epipolar geometry says nothing about sliding along a line, and views without texture have no matches: it stands beside
the fitted field, not in its place. Matches are scikit-image's SIFT with Lowe's ratio test, both ways; the reference
takes COLMAP's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from kornia.geometry import epipolar
from numpy.typing import NDArray
from skimage.feature import SIFT, match_descriptors
from torch import Tensor

from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import to_uint8
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.views import Views
from threedgen.run.arrays import evenly_spaced

from .options import TSEDConfig

Floats = NDArray[np.float64]

REFERENCE_SIZE = 256
"""Pixels a side for which the threshold of the error is meant."""
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Pairs:
    """Consistent ones of all pairs; ``matches`` and ``median_sed`` (in pixels; inf without a match) of each."""

    consistent: int
    total: int
    matches: tuple[int, ...]
    median_sed: tuple[float, ...]

    @property
    def share(self) -> float | None:
        return self.consistent / self.total if self.total else None


def fundamental(first: Cameras, second: Cameras) -> Tensor:
    """Finds F (N, 3, 3) of N pairs of cameras, float64: q^T F p = 0 for the pictures p, q (homogeneous pixels) of a
    point in both. F is 0 if the two stand in one place."""
    one, other = (torch.linalg.inv(opencv_axes(at.c2w).double()) for at in (first, second))  # world to camera
    E = epipolar.essential_from_Rt(one[:, :3, :3], one[:, :3, 3:], other[:, :3, :3], other[:, :3, 3:])
    apart = (first.position != second.position).any(1)  # else rounding would draw lines
    return apart[:, None, None] * epipolar.fundamental_from_essential(E, first.K.double(), second.K.double())


def symmetric_epipolar_distance(matches: Floats, F: Tensor) -> Floats:
    """Averages the distances (M,) in pixels of each match's two points to the other's epipolar line.

    ``matches`` (M, 4): (u, v) in the first picture and (u, v) in the second. inf where there is no line.
    """
    p, q = torch.from_numpy(np.asarray(matches, np.float64)).split(2, 1)
    there, back = epipolar.left_to_right_epipolar_distance(p, q, F), epipolar.right_to_left_epipolar_distance(p, q, F)
    return (0.5 * (there + back)).numpy()


def judge(distances: Sequence[Floats], t_error: float, t_matches: int) -> Pairs:
    """Calls a pair consistent with at least ``t_matches`` matches and a median distance below ``t_error`` pixels.

    ``distances``: those of the matches of each pair, (M,) with any M, 0 included.
    """
    medians = [float(np.median(d)) if len(d) else float("inf") for d in distances]
    counts = [len(d) for d in distances]
    fine = [n >= t_matches and m < t_error for n, m in zip(counts, medians, strict=True)]
    return Pairs(sum(fine), len(fine), tuple(counts), tuple(medians))


def tsed(views: Views, options: TSEDConfig) -> Pairs:
    """Measures TSED of neighbouring views, in the order in which they are given, at ``options.size`` pixels a side."""
    pairs = neighbours(len(views), options.pairs)
    if not pairs:
        return judge([], options.t_error, options.t_matches)
    needed = sorted({k for pair in pairs for k in pair})
    images = to_uint8(views.select(needed).resized(options.size).images)
    features = {k: describe(image) for k, image in zip(needed, images, strict=True)}
    at = views.cameras.with_size(options.size, options.size)
    F = fundamental(*(at.select([pair[end] for pair in pairs]) for end in (0, 1)))
    matches = [match(features[one], features[two], options.ratio) for one, two in pairs]
    distances = list(map(symmetric_epipolar_distance, matches, F))
    return judge(distances, options.t_error * options.size / REFERENCE_SIZE, options.t_matches)


def neighbours(count: int, pairs: int) -> list[tuple[int, int]]:
    """Chooses at most ``pairs`` of the pairs (k, k + 1) of ``count`` views, evenly spread."""
    return [(k, k + 1) for k in evenly_spaced(count - 1, pairs)] if pairs and count > 1 else []


Features = tuple[Floats, NDArray[np.uint8]]


def describe(image: NDArray[np.uint8]) -> Features | None:
    """Finds the features of a picture (H, W, 3): places (M, 2) as (u, v), pixel centres at +0.5, and SIFT descriptors
    (M, 128); None if there is no feature at all."""
    sift = SIFT()
    try:
        sift.detect_and_extract((image @ LUMA) / 255)
    except RuntimeError:  # how the library says that it found none
        return None
    places, descriptors = np.asarray(sift.keypoints), np.asarray(sift.descriptors)
    return places[:, ::-1] + 0.5, descriptors


def match(first: Features | None, second: Features | None, ratio: float) -> Floats:
    """Matches features that are each other's nearest and clearly nearer than the next: their places (M, 4)."""
    if first is None or second is None or min(len(first[0]), len(second[0])) < 2:
        return np.zeros((0, 4))
    index = match_descriptors(first[1], second[1], cross_check=True, max_ratio=ratio)
    return np.hstack([first[0][index[:, 0]], second[0][index[:, 1]]])
