"""Figures that compare sets of features or of class scores: FID, KID, Inception score, R-Precision. All in float64.

A figure belongs to the network whose features they are, to its preprocessing and to the number of pictures; it compares
with nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from .figures import Share

Array = NDArray[Any]


def fid(x: Array, y: Array) -> float:
    """Frechet distance of Gaussians fitted to features (N, D) and (M, D), covariances with n - 1 (Heusel et al. 2017):

        |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2))

    With no more features than D the covariances are singular, and the figure comes out too high.
    """
    x, y = _pair(x, y, least=2)
    s_x, s_y = (np.atleast_2d(np.cov(features, rowvar=False)) for features in (x, y))
    # the eigenvalues of S_x S_y are those of a positive semi-definite matrix, up to rounding
    roots = np.sqrt(np.linalg.eigvals(s_x @ s_y).astype(complex)).real
    away = x.mean(0) - y.mean(0)
    return float(away @ away + np.trace(s_x) + np.trace(s_y) - 2 * roots.sum())


def kid(x: Array, y: Array, degree: int = 3, gamma: float | None = None, coef: float = 1.0) -> float:
    """Unbiased squared MMD with the kernel (gamma x.y + coef)^degree, gamma = 1 / D (Binkowski et al. 2018, eq. 4).

    Of features (N, D) and (M, D) the first min(N, M) each are taken. May be negative. Not multiplied by anything.
    """
    x, y = _pair(x, y, least=2)
    count = min(len(x), len(y))
    x, y = x[:count], y[:count]
    gamma = 1 / x.shape[1] if gamma is None else gamma

    def kernel(a: Array, b: Array) -> Array:
        return (gamma * a @ b.T + coef) ** degree

    def off_diagonal(k: Array) -> float:
        return float(k.sum() - np.trace(k)) / (count * (count - 1))

    return off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * float(kernel(x, y).mean())


def kid_subsets(x: Array, y: Array, subsets: int = 100, size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of ``kid`` over random subsets of ``size``, the usual way to state it."""
    rng = np.random.default_rng(seed)
    x, y = _pair(x, y, least=2)
    if size > min(len(x), len(y)):
        raise ValueError(f"subsets of {size} cannot be drawn from {len(x)} and {len(y)} features")
    values = [kid(x[rng.permutation(len(x))[:size]], y[rng.permutation(len(y))[:size]]) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def inception_score(logits: Array, splits: int = 10) -> tuple[float, float]:
    """Mean and unbiased standard deviation over ``splits`` of exp(E KL(p(y|x) || p(y))), logits (N, K) taken in the
    order given (Salimans et al. 2016). The deviation is 0 for one split."""
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(f"logits should be (N, K) with N >= splits >= 1 (got {logits.shape} and {splits})")
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    scores = []
    for part in _split(log_p, splits):
        marginal = logsumexp(part, axis=0) - np.log(len(part))
        scores.append(np.exp((np.exp(part) * (part - marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores, ddof=1)) if splits > 1 else 0.0


def _split(rows: Array, parts: int) -> list[Array]:
    """As ``torch.chunk``: all but the last of equal length."""
    length = -(-len(rows) // parts)
    return [rows[start : start + length] for start in range(0, len(rows), length)]


def r_precision(likeness: Array, own: Sequence[int] | None = None) -> Share:
    """Of how many assets the own prompt fits best: row i of (A, N) says how well asset i fits each of N prompts, and
    ``own`` (A,) which of them it was made for (default: asset i for prompt i)."""
    likeness = np.asarray(likeness, np.float64)
    wanted = np.arange(len(likeness)) if own is None else np.asarray(own, np.int64)
    if likeness.ndim != 2 or wanted.shape != likeness.shape[:1] or not (wanted < likeness.shape[1]).all():
        raise ValueError(f"there should be a row for each asset and a column for each prompt (got {likeness.shape})")
    return Share(int((likeness.argmax(1) == wanted).sum()), len(likeness))


def _pair(x: Array, y: Array, least: int) -> tuple[Array, Array]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < least:
        raise ValueError(
            f"features should be (N, D) and (M, D) with N and M at least {least} (got {x.shape} and {y.shape})"
        )
    return x, y
