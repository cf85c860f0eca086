"""Check with the photos whether the convention of camera poses, such as camera-to-world with OpenGL axes, is right.

In the right convention, two rays through matching pixels meet in front of both cameras. If the photos have too few
matching features, the check is whether the cameras look at a common point.
"""

from typing import NamedTuple, get_args

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.geometry.features import detect, match
from threedgen.geometry.images import to_uint8
from threedgen.run.arrays import Array, evenly_spaced

from .files import alternatives, focus
from .options import PoseConvention
from .photos import PosedPhotos

ANCHORS = 6  # number of evenly spaced photos; all pairs of these and of the photos after them are matched
MIN_MATCHES, MIN_PAIRS = 10, 3  # minimum number of matches of a pair of photos, and minimum number of such pairs
MIN_FIT, MIN_COSINE = 0.3, 0.7
"""A pose convention fits if the fraction of matching pixels whose rays meet is at least MIN_FIT; with too few matches,
if the median cosine between the viewing axes and the directions to their common point is at least MIN_COSINE."""
MAX_MISS = 2.0  # maximum distance in pixels of a matching pixel from the point where the two rays meet


class Match(NamedTuple):
    """Matching pixels of the two photos with the indices `first` and `second`.

    Each row of `pixels` (M, 4) is one of the M matches: (x, y) in the first photo, then (x, y) in the second. They are
    pixels of the photos after these are resized and their lens distortion is removed. The centre of the top left pixel
    is (0.5, 0.5).
    """

    first: int
    second: int
    pixels: Array


def check_convention(photos: PosedPhotos) -> list[str]:
    """Check with the images whether `photos.convention`, such as "c2w-opengl", is the right one for the poses.

    A convention tells whether a pose matrix is camera-to-world (c2w) or world-to-camera (w2c), and whether the camera
    has OpenGL or OpenCV axes. `photos.convention` competes with the other three conventions, and with all four after y
    and z of the translation are swapped, a mistake in some files (`alternatives`). Each of these eight candidates gets
    a score:

    - If at least 3 pairs of photos (MIN_PAIRS) have enough matching pixels: the fraction of matching pixels whose two
      camera rays meet, up to 2 pixels (`fraction_meeting`), averaged over the pairs. 0.3 (MIN_FIT) or more is good.
    - Otherwise: how well all cameras look at one point, the point nearest to all viewing axes. The score is the median
      cosine between a camera's viewing axis and its direction to this point. 0.7 (MIN_COSINE) or more is good.

    Returns:
        [] if the score of `photos.convention` is good. A list with one remark for the user if it is not, and no other
        candidate is clearly better.

    Raises:
        ConfigError: the score is not good, and another candidate is clearly better: its score is good and at least
            twice as high. Or the matrices have a reflection (negative determinant), so that no convention is right. The
            message names the candidate that fits best, if one is good.
    """
    poses, declared = alternatives(photos.matrices), photos.convention
    matches, K = matching_pixels(photos), photos.cameras.K.double().numpy()
    if len(matches) >= MIN_PAIRS:
        fits = {name: float(np.mean([fraction_meeting(c2w, K, m) for m in matches])) for name, c2w in poses.items()}
        enough, unit = MIN_FIT, "share of matching pixels whose rays meet"
    else:
        fits = {name: focus(c2w).agreement for name, c2w in poses.items()}
        enough, unit = MIN_COSINE, "median cosine of the viewing axes with their common point"
    best, own = max(fits, key=lambda name: fits[name]), fits.get(declared, 0.0)
    if declared in fits and (own >= enough or fits[best] < max(enough, 2 * own)):
        doubt = f"the poses fit badly as {declared} ({unit} {own:.2f}), and not clearly better as another convention"
        return [] if own >= enough else [f"{photos.name}: {doubt}"]
    advice = f"Set poses={best}" if best in get_args(PoseConvention) else "Correct the matrices in the file"
    problem = f"are not {declared} ({unit}: {own:.2f})" if declared in fits else "are mirrored"
    if fits[best] >= enough:
        fit = f"They fit as {best} ({fits[best]:.2f})"
    else:
        fit, advice = "No convention fits", "Correct the matrices in the file"
    raise ConfigError(f"{photos.posed.source}: the poses {problem}. {fit}. {advice}")


def matching_pixels(photos: PosedPhotos) -> list[Match]:
    """Match SIFT features between up to 12 photos: 6 (ANCHORS) evenly spaced ones, and for each of them the next photo.

    All pairs of these photos are tried. Return one `Match` with the pixel positions for each pair that has at least
    10 (MIN_MATCHES) matches.
    """
    if len(photos) < 2:
        return []
    anchors = evenly_spaced(len(photos) - 1, ANCHORS)
    index = sorted({*anchors, *(k + 1 for k in anchors)})
    features = [detect(image) for image in to_uint8(photos.views(index).images)]
    pairs = [(a, b) for a in range(len(index)) for b in range(a + 1, len(index))]
    found = [Match(index[a], index[b], match(features[a], features[b])) for a, b in pairs]
    return [one for one in found if len(one.pixels) >= MIN_MATCHES]


def fraction_meeting(c2w: Array, K: Array, match: Match) -> float:
    """Return the fraction of matching pixels whose two rays meet in front of both cameras.

    Rays seldom meet exactly. They count as meeting if the point halfway between them, at the place where they are
    closest, is projected less than 2 pixels (MAX_MISS) from the matching pixel in both photos.

    Args:
        c2w: (N, 4, 4), camera-to-world poses of all N photos, OpenGL axes.
        K: (N, 3, 3), intrinsics of all photos, in the pixels of `match`.
        match: indices of two photos, and the M pixels that match in them.
    """
    i, j = match.first, match.second
    a, b = (_rays(c2w[k], K[k], pixels) for k, pixels in ((i, match.pixels[:, :2]), (j, match.pixels[:, 2:])))
    base = c2w[i, :3, 3] - c2w[j, :3, 3]
    aa, bb, ab = ((x * y).sum(1) for x, y in ((a, a), (b, b), (a, b)))
    ad, bd = a @ base, b @ base
    determinant = np.maximum(aa * bb - ab**2, 1e-12)
    s, t = (ab * bd - bb * ad) / determinant, (aa * bd - ab * ad) / determinant  # depths of the nearest points
    gap = np.linalg.norm(base + s[:, None] * a - t[:, None] * b, axis=1)
    depth = np.minimum(s, t)
    with np.errstate(divide="ignore", invalid="ignore"):  # a depth may be 0
        miss = gap / 2 * np.maximum(K[i, 0, 0] / s, K[j, 0, 0] / t)
    return float(((depth > 0) & (miss < MAX_MISS)).mean())


def _rays(c2w: Array, K: Array, pixels: Array) -> Array:
    x, y = ((pixels - K[:2, 2]) / K[[0, 1], [0, 1]]).T
    return np.stack([x, -y, -np.ones_like(x)], axis=1) @ c2w[:3, :3].T
