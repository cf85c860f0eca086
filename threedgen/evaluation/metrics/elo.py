"""Elo ratings from comparisons of pairs, as GPTEval3D has them (arXiv 2401.04092).

    loss(e) = sum over i != j of W_ij log(1 + 10^((e_j - e_i) / 400)),    W_ij: how often i won over j

Only differences count, so one method is the anchor. The loss is convex (it is Bradley and Terry's model), and Newton's
method finds its minimum where the original takes thousands of steps of gradient descent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SCALE = 400.0


def wins(comparisons: Array, methods: int | None = None) -> Array:
    """W (M, M) of rows (i, j, r): r = -1, i won; 1, j won; 0, a draw, which counts as a win for both."""
    rows = np.asarray(comparisons, np.int64).reshape(-1, 3)
    count = methods if methods is not None else int(rows[:, :2].max(initial=-1)) + 1
    known = (rows[:, :2] >= 0) & (rows[:, :2] < count)
    if not (known.all() and np.isin(rows[:, 2], (-1, 0, 1)).all()):
        raise ValueError(f"comparisons are rows (i, j, r) with methods 0 to {count - 1} and r -1, 0 or 1")
    table = np.zeros((count, count))
    np.add.at(table, (rows[:, 0], rows[:, 1]), rows[:, 2] <= 0)
    np.add.at(table, (rows[:, 1], rows[:, 0]), rows[:, 2] >= 0)
    return table


def ratings(table: Array, frozen: Mapping[int, float] | None = None, most: float = 4000.0) -> Array:
    """The ratings (M,) of the least loss. ``frozen``: method -> its rating, which stays (none: method 0 has 0).

    A method that always won, or always lost, has no finite rating; it stops ``most`` away from the anchors' mean.
    Raises ValueError for a table that is not square or has negative numbers.
    """
    table = np.asarray(table, np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or (table < 0).any():
        raise ValueError(f"wins should be a square table of counts (got {table.shape})")
    fixed = {0: 0.0} if frozen is None else dict(frozen)
    if not fixed:
        raise ValueError("one rating at least has to be frozen: only differences are told")
    rate = np.full(len(table), float(np.mean(list(fixed.values()))))
    rate[list(fixed)] = list(fixed.values())
    free = np.array([k for k in range(len(table)) if k not in fixed], int)
    if not len(free):
        return rate
    middle, unit = float(np.mean(list(fixed.values()))), SCALE / np.log(10)
    off = table * (1 - np.eye(len(table)))
    loss = _loss(off, rate / unit)
    for _ in range(200):
        gradient, hessian = _derivatives(off, rate / unit)
        move = np.linalg.lstsq(hessian[np.ix_(free, free)] + 1e-12 * np.eye(len(free)), gradient[free], rcond=None)[0]
        step, better = 1.0, False
        while step > 1e-10 and not better:  # a full Newton step may overshoot where the loss is nearly straight
            tried = rate.copy()
            tried[free] = np.clip(rate[free] - step * unit * move, middle - most, middle + most)
            better = (after := _loss(off, tried / unit)) <= loss
            step /= 2
        if not better or np.abs(tried - rate).max() < 1e-9:
            break
        rate, loss = tried, after
    return rate


def _loss(table: Array, rate: Array) -> float:
    """Rates in units of e-folds of the odds."""
    return float((table * np.logaddexp(0, rate[None] - rate[:, None])).sum())


def _derivatives(table: Array, rate: Array) -> tuple[Array, Array]:
    """Gradient (M,) and Hessian (M, M) of the loss."""
    lose = 1 / (1 + np.exp(np.clip(rate[:, None] - rate[None], -700, 700)))  # of i against j
    gradient = (table.T * lose.T).sum(1) - (table * lose).sum(1)
    weight = (table + table.T) * lose * lose.T
    return gradient, np.diag(weight.sum(1)) - weight
