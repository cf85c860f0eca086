"""SIFT features of images and their matches, with Lowe's ratio test and a cross check (scikit-image)."""

import numpy as np
from numpy.typing import NDArray
from skimage.feature import SIFT, match_descriptors

Floats = NDArray[np.float64]
Features = tuple[Floats, NDArray[np.uint8]]

RATIO = 0.8  # threshold of Lowe's ratio test
LUMA = np.array([0.299, 0.587, 0.114])


def detect(image: NDArray[np.uint8]) -> Features | None:
    """Detect SIFT features of an image (H, W, 3), uint8. Return their positions and descriptors; None without features.

    The positions (M, 2), float64, of M features are (x, y) in pixels, with the first pixel centre at (0.5, 0.5). The
    descriptors are (M, 128), uint8.
    """
    sift = SIFT()
    try:
        sift.detect_and_extract((image @ LUMA) / 255)
    except RuntimeError:  # scikit-image found no features
        return None
    positions, descriptors = np.asarray(sift.keypoints), np.asarray(sift.descriptors)
    return positions[:, ::-1] + 0.5, descriptors


def match(first: Features | None, second: Features | None) -> Floats:
    """Match the features of two images (results of `detect`). Return M matches as (M, 4) float64.

    Two features match if each has the nearest descriptor to the other and Lowe's ratio test (0.8, `RATIO`) accepts the
    pair. A row has the position (x, y) in the first image, then the position in the second image, in pixels. There are
    no matches if an image has fewer than two features.
    """
    if first is None or second is None or min(len(first[0]), len(second[0])) < 2:
        return np.zeros((0, 4))
    index = match_descriptors(first[1], second[1], cross_check=True, max_ratio=RATIO)
    return np.hstack([first[0][index[:, 0]], second[0][index[:, 1]]])
