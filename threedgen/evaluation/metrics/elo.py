"""Finds Elo ratings from comparisons of pairs, as GPTEval3D has them (arXiv 2401.04092).

    loss(e) = sum over i != j of W_ij log(1 + 10^((e_j - e_i) / 400)),    W_ij: how often i won over j

Only differences count, so one method is the anchor. The loss is convex (it is Bradley and Terry's model), and L-BFGS
finds its minimum where the original takes thousands of steps of gradient descent.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from threedgen.run.arrays import Array

UNIT = 400.0 / np.log(10)
"""Points of a rating by which the odds grow e-fold."""


def wins(comparisons: Array, methods: int | None = None) -> Array:
    """Counts W (M, M) from rows (i, j, r): r = -1, i won; 1, j won; 0, a draw, which counts as a win for both."""
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
    """Finds the ratings (M,) of the least loss. ``frozen``: method -> its rating, which stays (none: method 0 has 0).

    A method that always won, or always lost, has no finite rating; it stops ``most`` away from the anchors' mean.
    Raises ValueError for a table that is not square or has negative numbers.
    """
    table = np.asarray(table, np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or (table < 0).any():
        raise ValueError(f"wins should be a square table of counts (got {table.shape})")
    fixed = {0: 0.0} if frozen is None else dict(frozen)
    if not fixed:
        raise ValueError("one rating at least has to be frozen: only differences are known")
    rate = np.full(len(table), float(np.mean(list(fixed.values()))))
    bounds = [((middle - most) / UNIT, (middle + most) / UNIT) for middle in rate]
    for method, rating in fixed.items():
        rate[method], bounds[method] = rating, (rating / UNIT,) * 2
    off = table * (1 - np.eye(len(table)))
    exact = {"ftol": 0.0, "gtol": 1e-12, "maxiter": 10_000, "maxfun": 100_000}
    return UNIT * minimize(_loss, rate / UNIT, off, "L-BFGS-B", jac=True, bounds=bounds, options=exact).x


def _loss(rate: Array, table: Array) -> tuple[float, Array]:
    """The loss of rates (M,) in units of e-folds of the odds, and its gradient (M,)."""
    behind = rate[None] - rate[:, None]
    lose = expit(behind)  # of i against j
    return float((table * np.logaddexp(0, behind)).sum()), (table.T * lose.T).sum(1) - (table * lose).sum(1)
