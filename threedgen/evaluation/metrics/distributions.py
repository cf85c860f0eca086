"""FID and KID of sets of features, and Inception score of class logits, in float64.

The values depend on the network, its preprocessing and the number of images. Compare only values that share all three.
"""

import warnings

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from threedgen.run.arrays import Array


def fid(x: Array, y: Array) -> float:
    """Return the FID: Frechet distance between Gaussians fitted to features x (N, D) and y (M, D) (Heusel et al. 2017).

        |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)),    with means m and unbiased covariances S

    If N or M is at most D, the covariance is singular and the FID is too high. Raises ValueError if the widths D differ
    or a set has fewer than two features.
    """
    x, y = _checked(x, y)
    return float(_compare(FrechetInceptionDistance(_Identity(x.shape[1]), sync_on_compute=False), x, y))


def kid(x: Array, y: Array, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Return the KID: unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, eq. 4), unscaled.

    Args:
        x: features (N, D) of the first set.
        y: features (M, D) of the second set.
        subsets: number of random subsets.
        size: number of features that a subset takes from each set.

    Returns:
        Mean and standard deviation over the subsets. The mean may be negative.

    Raises:
        ValueError: if the widths D differ, a set has fewer than two features, or ``size`` is larger than a set.
    """
    x, y = _checked(x, y)
    if size > min(len(x), len(y)):
        raise ValueError(f"subsets of {size} are larger than the sets: {len(x)} and {len(y)} features")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # torchmetrics uses the global generator
        warnings.filterwarnings("ignore", message=".*Kernel Inception Distance.*")  # on memory; features are small
        torch.manual_seed(seed)
        net = _Identity(x.shape[1])
        metric = KernelInceptionDistance(net, subsets=subsets, subset_size=size, sync_on_compute=False)
        mean, deviation = _compare(metric, x, y)
    return float(mean), float(deviation)


class _Identity(nn.Identity):
    """Identity map in place of the feature network of a torchmetrics metric. The metric then receives features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def _checked(x: Array, y: Array) -> tuple[Array, Array]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features are not (N, D) and (M, D) with N, M >= 2: {x.shape} and {y.shape}")
    return x, y


def _compare(metric: Metric, x: Array, y: Array) -> Tensor:
    metric.update(torch.from_numpy(x), real=True)
    metric.update(torch.from_numpy(y), real=False)
    result: Tensor = metric.compute()
    return result


def inception_score(logits: Array, splits: int = 10) -> tuple[float, float]:
    """Return the Inception score exp(E KL(p(y|x) || p(y))) of class logits (N, K) (Salimans et al. 2016).

    The logits are split into ``splits`` consecutive parts, as in the code of the paper; torchmetrics shuffles them.

    Returns:
        Mean and unbiased standard deviation of the scores of the parts. The deviation is 0 for one part.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"logits are not (N, K) with N >= splits >= 1: {logits.shape}, splits={splits}")
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    scores = []
    for part in map(np.asarray, torch.from_numpy(log_p).chunk(splits)):
        marginal = logsumexp(part, axis=0) - np.log(len(part))
        scores.append(np.exp((np.exp(part) * (part - marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if splits > 1 else 0.0
