"""FID and KID of sets of features, and Inception score of class logits, in float64.

Compare only values that share the network, its preprocessing and the number of images.
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

    If N or M is at most D, the covariance is singular and the FID is too high.
    """
    return float(_compare(FrechetInceptionDistance(_Identity(x.shape[1]), sync_on_compute=False), x, y))


def kid(x: Array, y: Array, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Return the KID: unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, eq. 4).

    The result is the mean and the standard deviation over ``subsets`` random subsets of ``size`` features of x (N, D)
    and of y (M, D). It is not multiplied by 1000, as in some papers. The mean may be negative.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # torchmetrics uses the global generator
        warnings.filterwarnings("ignore", message=".*Kernel Inception Distance.*")  # on memory; features are small
        torch.manual_seed(seed)
        net = _Identity(x.shape[1])
        metric = KernelInceptionDistance(net, subsets=subsets, subset_size=size, sync_on_compute=False)
        mean, deviation = _compare(metric, x, y)
    return float(mean), float(deviation)


class _Identity(nn.Identity):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def _compare(metric: Metric, x: Array, y: Array) -> Tensor:
    metric.update(torch.from_numpy(np.asarray(x, np.float64)), real=True)
    metric.update(torch.from_numpy(np.asarray(y, np.float64)), real=False)
    result: Tensor = metric.compute()
    return result


def inception_score(logits: Array, splits: int = 10) -> tuple[float, float]:
    """Return the Inception score exp(E KL(p(y|x) || p(y))) of class logits (N, K) (Salimans et al. 2016).

    The N rows are split into ``splits`` consecutive parts, as in the code of the paper; torchmetrics shuffles them. The
    result is the mean and the unbiased standard deviation over the parts. The deviation is 0 for one part.
    """
    logits = np.asarray(logits, np.float64)
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    scores = []
    for part in map(np.asarray, torch.from_numpy(log_p).chunk(splits)):
        marginal = logsumexp(part, axis=0) - np.log(len(part))
        scores.append(np.exp((np.exp(part) * (part - marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if splits > 1 else 0.0
