"""FID and KID of sets of features and Inception score of class logits, all in float64; metrics of colour.

Values of FID, KID or Inception score are comparable only for equal network, preprocessing and number of images.
"""

import warnings
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.ndimage import binary_erosion
from scipy.special import logsumexp
from skimage.color import rgb2lab
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from threedgen.run.arrays import Array


def fid(x: Array, y: Array) -> float:
    """Return the FID: Frechet distance between Gaussians fitted to features x (N, D) and y (M, D) (Heusel et al. 2017).

        |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)),    with means m and unbiased covariances S

    If N or M is at most D, the covariance is singular and the FID is too high.
    """
    return float(_compare(FrechetInceptionDistance(_Identity(x.shape[1]), sync_on_compute=False), x, y))


def kid(x: Array, y: Array, subsets: int = 100, size: int = 1000) -> float:
    """Return the KID: unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, eq. 4).

    The result is the mean over ``subsets`` random subsets of ``size`` features of x (N, D) and of y (M, D), where N and
    M must be at least ``size``. The random seed is fixed. The result may be negative, and is not multiplied by 1000,
    unlike in some papers.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # torchmetrics uses the global generator
        warnings.filterwarnings("ignore", message=".*Kernel Inception Distance.*")  # on memory; features are small
        torch.manual_seed(0)
        net = _Identity(x.shape[1])
        metric = KernelInceptionDistance(net, subsets=subsets, subset_size=size, sync_on_compute=False)
        return float(_compare(metric, x, y)[0])


def distance_functions(
    ours: Sequence[Array], truth: Sequence[Array], subsets: int, size: int
) -> dict[str, Callable[[NDArray[np.intp]], float]]:
    """Return functions "fid" and "kid" that compute the metric for selected items, such as scenes.

    The argument of a function is the indices of the selected items, whose features are put together into one set.

    Args:
        ours: features (N, D) of each item to evaluate.
        truth: features (M, D) of each item to compare with. If ``truth`` has as many items as ``ours``, the items with
            the same indices are selected from it; if not, all its items are used.
        subsets, size: KID is the mean over ``subsets`` random draws of ``size`` features from each of the two sets. If
            a set has at most ``size`` features, there is only one draw, with as many features as the smaller set has.
    """

    def both(items: NDArray[np.intp]) -> tuple[Array, Array]:
        true_items = items if len(ours) == len(truth) else range(len(truth))
        return np.concatenate([ours[k] for k in items]), np.concatenate([truth[k] for k in true_items])

    def kernel(items: NDArray[np.intp]) -> float:
        x, y = both(items)
        count = min(len(x), len(y))
        return kid(x, y, *((subsets, size) if count > size else (1, count)))

    return {"fid": lambda items: fid(*both(items)), "kid": kernel}


class _Identity(nn.Identity):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def _compare(metric: Metric, x: Array, y: Array) -> Tensor:
    metric.update(torch.from_numpy(np.asarray(x, np.float64)), real=True)
    metric.update(torch.from_numpy(np.asarray(y, np.float64)), real=False)
    return metric.compute()


def inception_score(logits: Array, splits: int = 10) -> float:
    """Return the Inception score exp(E KL(p(y|x) || p(y))) of class logits (N, K) (Salimans et al. 2016).

    The N rows are split into ``splits`` <= N consecutive parts of nearly equal size, as in the code of the paper;
    torchmetrics shuffles them. The result is the mean over the parts.
    """
    logits = np.asarray(logits, np.float64)
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    scores = []
    for part in np.split(log_p, [k * len(log_p) // splits for k in range(1, splits)]):
        marginal = logsumexp(part, axis=0) - np.log(len(part))
        scores.append(np.exp((np.exp(part) * (part - marginal)).sum(1).mean()))
    return float(np.mean(scores))


PALETTE = 4  # number of colours of the palette in `mottle`
MOTTLE_PIXELS = 4000  # number of random foreground pixels, over all views, that `mottle` is computed on
MIN_FOREGROUND = 0.01
"""Minimum fraction of foreground pixels in a view. A view with less foreground counts as missing."""


def foreground_means(views: np.ndarray, masks: np.ndarray) -> list[np.ndarray | None]:
    """Return the mean Lab colour (3,) of the foreground of each view.

    The result is None for a view whose foreground covers less than 1 % of it (`MIN_FOREGROUND`). ``views`` are
    sRGB images (V, H, W, 3) in [0, 1], ``masks`` are bool (V, H, W), True for the foreground.
    """
    return [
        rgb2lab(view[mask][None])[0].mean(0) if mask.mean() >= MIN_FOREGROUND else None
        for view, mask in zip(views, masks, strict=True)
    ]


def colour_disagreement(means: Sequence[np.ndarray | None], missing: float) -> float:
    """Return the Lab distance between the mean colours of two views of an object, averaged over all pairs of views.

    ``means`` has the mean Lab colour (3,) of each view, or None for a missing view. For a pair with a missing view, the
    distance is ``missing``.
    """
    pairs = [missing if a is None or b is None else float(np.linalg.norm(a - b)) for a, b in combinations(means, 2)]
    return float(np.mean(pairs))


def mottle(views: np.ndarray, masks: np.ndarray) -> float | None:
    """Measure how patchy the colours of an object are; None for fewer than 4 (`PALETTE`) foreground pixels.

    The value is the mean distance from a foreground pixel to the nearest of 4 colours in the (a, b) plane of Lab. The
    4 colours are found by k-means over random foreground pixels of all views. Pixels at the outline are left out.
    ``views`` are sRGB images (V, H, W, 3) in [0, 1], ``masks`` are bool (V, H, W), True for the foreground.
    """
    inner = np.stack([binary_erosion(mask, iterations=max(1, views.shape[1] // 64)) for mask in masks])
    pixels = views[inner]
    if len(pixels) < PALETTE:
        return None
    rng = np.random.default_rng(0)
    ab = rgb2lab(pixels[rng.integers(len(pixels), size=MOTTLE_PIXELS)][None])[0][:, 1:]
    best = np.inf
    for attempt in range(4):
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # fewer colours than the palette has
            warnings.simplefilter("ignore")
            palette, nearest = kmeans2(ab, PALETTE, minit="++", rng=np.random.default_rng([0, attempt]))
        best = min(best, float(np.linalg.norm(ab - palette[nearest], axis=1).mean()))
    return best
