"""SIFT features of images and their matches, with Lowe's ratio test and a cross check (scikit-image)."""

import numpy as np
from numpy.typing import NDArray
from skimage.feature import SIFT, match_descriptors

Floats = NDArray[np.float64]
Features = tuple[Floats, NDArray[np.uint8]]

RATIO = 0.8  # threshold of Lowe's ratio test
LUMA = np.array([0.299, 0.587, 0.114])


def detect(image: NDArray[np.uint8]) -> Features | None:
    """Return positions (M, 2) in pixels and descriptors (M, 128) of SIFT in an image (H, W, 3); None without."""
    sift = SIFT()
    try:
        sift.detect_and_extract((image @ LUMA) / 255)
    except RuntimeError:  # scikit-image found no features
        return None
    positions, descriptors = np.asarray(sift.keypoints), np.asarray(sift.descriptors)
    return positions[:, ::-1] + 0.5, descriptors


def match(first: Features | None, second: Features | None) -> Floats:
    """Match features of two images; return rows (M, 4): (x, y) in the first, then in the second, in pixels."""
    if first is None or second is None or min(len(first[0]), len(second[0])) < 2:
        return np.zeros((0, 4))
    index = match_descriptors(first[1], second[1], cross_check=True, max_ratio=RATIO)
    return np.hstack([first[0][index[:, 0]], second[0][index[:, 1]]])
