"""Which of the views that are there may condition the next one: the only thing in which the samplers differ.

A strategy is a function (inputs, generated) -> range of candidates, numbered in the order in which the views came:
first the ``inputs``, then the ``generated`` ones. At every denoising step the sampler draws one of them, all equally
likely.
"""

from __future__ import annotations

from collections.abc import Callable

Strategy = Callable[[int, int], range]

NAMES = ("stochastic", "first", "last")


def every_view(inputs: int, generated: int) -> range:
    """Stochastic conditioning: all views that are there (Watson et al. 2023, section 2.2)."""
    return range(inputs + generated)


def first_view(inputs: int, generated: int) -> range:
    """Each view from the first input alone; generated views never see each other."""
    return range(1)


def last_views(count: int = 1) -> Strategy:
    """Markovian of order ``count`` >= 1: the newest views, among which inputs are as long as too few are generated.

    Raises ValueError if count is less than 1.
    """
    if count < 1:
        raise ValueError(f"the last {count} views cannot condition anything; count should be at least 1")

    def newest(inputs: int, generated: int) -> range:
        return range(max(0, inputs + generated - count), inputs + generated)

    return newest


def strategy(name: str, last: int = 1) -> Strategy:
    """By name: "stochastic", "first", or "last" (with how many). Raises ValueError for any other."""
    if name not in NAMES:
        raise ValueError(f"there is no conditioning strategy {name!r}; choose one of {', '.join(NAMES)}")
    return {"stochastic": every_view, "first": first_view, "last": last_views(last)}[name]
