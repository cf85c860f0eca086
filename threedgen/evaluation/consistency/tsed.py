"""TSED: how many pairs of neighbouring views obey the epipolar geometry of their cameras (Yu et al. 2023,
"Long-Term Photometric Consistent Novel View Synthesis with Diffusion Models", section 4.2).

Epipolar geometry says nothing about sliding along a line, and views without texture have no matches: it stands beside
the fitted field, not in its place. Matches are scikit-image's SIFT with Lowe's ratio test, both ways; the reference
takes COLMAP's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.feature import SIFT, match_descriptors

from threedgen.geometry.images import to_uint8
from threedgen.geometry.views import Views

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


def fundamental(first: Floats, second: Floats, K_first: Floats, K_second: Floats) -> Floats:
    """F (3, 3) of two cameras: q^T F p = 0 for the pictures p, q (homogeneous pixels) of a point in both.

    ``first``, ``second`` (4, 4): camera-to-world with OpenGL axes; K (3, 3). F is 0 if they stand in one place.
    """
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    motion = np.linalg.inv(second @ flip) @ (first @ flip)  # from the first camera's frame to the second's
    x, y, z = motion[:3, 3]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.linalg.inv(K_second).T @ cross @ motion[:3, :3] @ np.linalg.inv(K_first)


def symmetric_epipolar_distance(matches: Floats, F: Floats) -> Floats:
    """(M,) pixels: the mean of each point's distance to the other's epipolar line.

    ``matches`` (M, 4): (u, v) in the first picture and (u, v) in the second. inf where there is no line.
    """
    ones = np.ones((len(matches), 1))
    p, q = np.hstack([matches[:, :2], ones]), np.hstack([matches[:, 2:], ones])

    def distance(points: Floats, lines: Floats) -> Floats:
        norm = np.linalg.norm(lines[:, :2], axis=1)
        error = np.abs((points * lines).sum(1))
        return np.where(norm > 1e-12, error / np.maximum(norm, 1e-12), np.inf)

    return 0.5 * (distance(q, p @ F.T) + distance(p, q @ F))


def judge(distances: Sequence[Floats], t_error: float, t_matches: int) -> Pairs:
    """A pair is consistent with at least ``t_matches`` matches and a median distance below ``t_error`` pixels.

    ``distances``: those of the matches of each pair, (M,) with any M, 0 included.
    """
    medians = [float(np.median(d)) if len(d) else float("inf") for d in distances]
    counts = [len(d) for d in distances]
    fine = [n >= t_matches and m < t_error for n, m in zip(counts, medians, strict=True)]
    return Pairs(sum(fine), len(fine), tuple(counts), tuple(medians))


def tsed(views: Views, options: TSEDConfig) -> Pairs:
    """TSED of neighbouring views, in the order in which they are given, at ``options.size`` pixels a side."""
    pairs = neighbours(len(views), options.pairs)
    needed = sorted({k for pair in pairs for k in pair})
    place = {k: n for n, k in enumerate(needed)}
    seen = views.select(needed).resized(options.size) if needed else views
    features = [describe(image) for image in to_uint8(seen.images)]
    c2w, K = seen.at.c2w.double().numpy(), seen.at.K.double().numpy()
    distances = []
    for one, two in pairs:
        a, b = place[one], place[two]
        matches = match(features[a], features[b], options.ratio)
        distances.append(symmetric_epipolar_distance(matches, fundamental(c2w[a], c2w[b], K[a], K[b])))
    return judge(distances, options.t_error * options.size / REFERENCE_SIZE, options.t_matches)


def neighbours(count: int, pairs: int) -> list[tuple[int, int]]:
    """At most ``pairs`` of the pairs (k, k + 1) of ``count`` views, evenly spread."""
    if pairs == 0 or count < 2:
        return []
    first = np.unique(np.round(np.linspace(0, count - 2, min(pairs, count - 1))).astype(int))
    return [(int(k), int(k) + 1) for k in first]


Features = tuple[Floats, NDArray[np.uint8]]


def describe(image: NDArray[np.uint8]) -> Features | None:
    """Places (M, 2) as (u, v), pixel centres at +0.5, and SIFT descriptors (M, 128) of a picture (H, W, 3); None if it
    has no feature at all."""
    sift = SIFT()
    try:
        sift.detect_and_extract((image @ LUMA) / 255)
    except RuntimeError:  # how the library says that it found none
        return None
    places, descriptors = np.asarray(sift.keypoints), np.asarray(sift.descriptors)
    return places[:, ::-1] + 0.5, descriptors


def match(first: Features | None, second: Features | None, ratio: float) -> Floats:
    """(M, 4): the places of features that are each other's nearest and clearly nearer than the next."""
    if first is None or second is None or min(len(first[0]), len(second[0])) < 2:
        return np.zeros((0, 4))
    index = match_descriptors(first[1], second[1], cross_check=True, max_ratio=ratio)
    return np.hstack([first[0][index[:, 0]], second[0][index[:, 1]]])
