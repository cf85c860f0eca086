"""TSED (thresholded symmetric epipolar distance): fraction of consecutive pairs of views that obey epipolar geometry.

Defined by Yu et al. 2023, "Long-Term Photometric Consistent Novel View Synthesis with Diffusion Models", section 4.2.
TSED does not detect shifts along an epipolar line, and views without texture have no matches. Features are matched by
SIFT of scikit-image with Lowe's ratio test and a cross check; the paper uses COLMAP. Pixels are (u right, v down), and
the centre of the first pixel is (0.5, 0.5).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from kornia.geometry import epipolar
from numpy.typing import NDArray
from torch import Tensor

from threedgen.geometry.cameras import Cameras
from threedgen.geometry.features import detect, match
from threedgen.geometry.images import to_uint8
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.views import Views
from threedgen.run.arrays import evenly_spaced

Floats = NDArray[np.float64]

MAX_ERROR = 2.0  # maximum median epipolar distance of a consistent pair of views, in pixels of images of ``SIZE``
MIN_MATCHES = 10  # minimum number of feature matches of a consistent pair of views
SIZE = 256  # side in pixels to which views are resized before features are detected


class Pairs(NamedTuple):
    """Epipolar consistency of P pairs of views, the result of `judge`.

    Attributes:
        consistent: number of consistent pairs: those with enough matches and a small median epipolar distance.
        total: number of pairs P.
        matches: number of feature matches of each pair (P values).
    """

    consistent: int
    total: int
    matches: tuple[int, ...]

    @property
    def share(self) -> float | None:
        return self.consistent / self.total if self.total else None


def fundamental(first: Cameras, second: Cameras) -> Tensor:
    """Return the fundamental matrices F (N, 3, 3), float64, of N pairs of cameras.

    A point with the homogeneous pixels p = (u, v, 1) in the first and q in the second image has q^T F p = 0. F is 0 for
    two cameras at the same position.
    """
    one, other = (torch.linalg.inv(opencv_axes(at.c2w).double()) for at in (first, second))  # world to camera
    E = epipolar.essential_from_Rt(one[:, :3, :3], one[:, :3, 3:], other[:, :3, :3], other[:, :3, 3:])
    apart = (first.position != second.position).any(1)  # otherwise F would be rounding errors
    return apart[:, None, None] * epipolar.fundamental_from_essential(E, first.K.double(), second.K.double())


def symmetric_epipolar_distance(matches: Floats, F: Tensor) -> Floats:
    """Return the symmetric epipolar distance (M,) of M matches in pixels; inf if F is 0.

    The distance of a match is the mean over its two points of the distance to the epipolar line of the other point.
    ``matches`` (M, 4) are pixels (u, v) in the first image, then in the second image. F is the fundamental matrix
    (3, 3).
    """
    p, q = torch.from_numpy(np.asarray(matches, np.float64)).split(2, 1)
    left, right = epipolar.left_to_right_epipolar_distance(p, q, F), epipolar.right_to_left_epipolar_distance(p, q, F)
    return (0.5 * (left + right)).numpy()


def judge(distances: Sequence[Floats], max_error: float = MAX_ERROR, min_matches: int = MIN_MATCHES) -> Pairs:
    """Return the numbers of consistent pairs of views, of all pairs, and of the feature matches of each pair.

    A pair is consistent if it has ``min_matches`` matches or more, and if their median epipolar distance is below
    ``max_error`` pixels. ``distances`` has, for each pair, the epipolar distances (M,) of its M matches, in pixels.
    """
    consistent = [len(d) >= min_matches and float(np.median(d)) < max_error for d in distances]
    return Pairs(sum(consistent), len(consistent), tuple(map(len, distances)))


def tsed(views: Views, count: int) -> Pairs:
    """Count the consistent pairs among at most ``count`` evenly spaced pairs of consecutive views.

    A pair is consistent if it has at least 10 feature matches and their median epipolar distance is below 2 pixels
    (`judge`). The views, in the order of the camera path, are resized to 256 x 256 pixels (`SIZE`) first. TSED is the
    property ``share`` of the result: the fraction of pairs that are consistent, None without pairs.
    """
    pairs = [(k, k + 1) for k in evenly_spaced(len(views) - 1, count)]
    if not pairs:
        return judge([])
    needed = sorted({k for pair in pairs for k in pair})
    images = to_uint8(views.select(needed).resized(SIZE).images)
    features = {k: detect(image) for k, image in zip(needed, images, strict=True)}
    at = views.cameras.with_size(SIZE, SIZE)
    F = fundamental(*(at.select([pair[end] for pair in pairs]) for end in (0, 1)))
    matches = [match(features[one], features[two]) for one, two in pairs]
    return judge(list(map(symmetric_epipolar_distance, matches, F)))
