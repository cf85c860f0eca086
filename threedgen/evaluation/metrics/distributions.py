"""Compares sets of features or of class scores: FID, KID, Inception score, R-Precision. All in float64.

A figure belongs to the network whose features they are, to its preprocessing and to the number of pictures; it compares
with nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from torch import nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from threedgen.run.arrays import Array

from .figures import Share

_ALONE: dict[str, Any] = {"sync_on_compute": False}
"""One process of several that train may measure without the others."""


def fid(x: Array, y: Array) -> float:
    """Measures the Frechet distance of Gaussians fitted to features (N, D) and (M, D) (Heusel et al. 2017):

        |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)),    covariances with n - 1

    With no more features than D the covariances are singular, and the figure comes out too high. Raises ValueError for
    features of two widths, or fewer than two of a kind.
    """
    return float(_compare(FrechetInceptionDistance(_Ready(np.shape(x)[-1]), **_ALONE), x, y))


def kid(x: Array, y: Array, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Measures the unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018, eq. 4).

    Returns mean and standard deviation over ``subsets`` random subsets of ``size`` features each of (N, D) and (M, D).
    The mean may be negative; it is not multiplied by anything. Raises ValueError as ``fid`` does, and for subsets that
    are larger than a set.
    """
    if size > min(len(x), len(y)):
        raise ValueError(f"subsets of {size} cannot be drawn from {len(x)} and {len(y)} features")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # it draws from the global generator
        warnings.filterwarnings("ignore", message=".*Kernel Inception Distance.*")  # some numbers a picture: no memory
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(_Ready(np.shape(x)[-1]), subsets=subsets, subset_size=size, **_ALONE)
        mean, spread = _compare(metric, x, y)
    return float(mean), float(spread)


class _Ready(nn.Identity):
    """Stands where torchmetrics has a network, for features that are there already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width


def _compare(metric: Metric, x: Array, y: Array) -> Any:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features should be (N, D) and (M, D), N and M at least 2 (got {x.shape} and {y.shape})")
    metric.update(torch.from_numpy(x), real=True)
    metric.update(torch.from_numpy(y), real=False)
    return metric.compute()


def inception_score(logits: Array, splits: int = 10) -> tuple[float, float]:
    """Measures exp(E KL(p(y|x) || p(y))) of logits (N, K) (Salimans et al. 2016): mean and unbiased standard deviation
    over ``splits`` parts as ``torch.chunk`` cuts them, 0 for one part.

    The logits are taken in the order given, as the paper's code does; torchmetrics shuffles them.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"logits should be (N, K) with N >= splits >= 1 (got {logits.shape} and {splits})")
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    scores = []
    for part in map(np.asarray, torch.from_numpy(log_p).chunk(splits)):
        marginal = logsumexp(part, axis=0) - np.log(len(part))
        scores.append(np.exp((np.exp(part) * (part - marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if splits > 1 else 0.0


def r_precision(similarity: Array, own: Sequence[int] | None = None) -> Share:
    """Counts the assets that their own prompt fits best: row i of (A, N) says how well each of N prompts fits asset i,
    and ``own`` (A,) which of them it was made for (default: asset i for prompt i)."""
    similarity = np.asarray(similarity, np.float64)
    expected = np.arange(len(similarity)) if own is None else np.asarray(own, np.int64)
    if similarity.ndim != 2 or expected.shape != similarity.shape[:1] or not (expected < similarity.shape[1]).all():
        raise ValueError(f"there should be a row for each asset and a column for each prompt (got {similarity.shape})")
    return Share(int((similarity.argmax(1) == expected).sum()), len(similarity))
