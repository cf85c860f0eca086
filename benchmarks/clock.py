"""Paired timing: cases take turns, and each is compared with a baseline of the same rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch

from .table import Row


class Case(NamedTuple):
    """What is timed; how many steps (or other units) a call makes; what a row says after its figures (asked at the
    end)."""

    run: Callable[[], object]
    count: int = 1
    told: Callable[[], Row] = dict


def interleaved(cases: Mapping[str, Case], rounds: int) -> dict[str, list[float]]:
    """Seconds of a unit of each case, round by round in turn, so that a busy moment of the machine meets all of them.

    Every case runs once before, untimed: compiling, caches, first allocations. One that does not fit into the memory
    of a GPU there has no seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    alive = [name for name, case in cases.items() if _fits(case)]
    for _ in range(rounds):
        for name in alive:
            begun = time.perf_counter()
            _finish(cases[name])
            seconds[name].append((time.perf_counter() - begun) / cases[name].count)
    return seconds


def paired(cases: Mapping[str, Case], baseline: str, rounds: int) -> list[Row]:
    """A row for each case: the least, median and greatest time of a unit, and its ratio to the baseline's, which is
    the median over the rounds: below 1 is faster."""
    rows, seconds = [], interleaved(cases, rounds)
    for name, case in cases.items():
        own, base = seconds[name], seconds[baseline]
        row: Row = {"case": name}
        for title, of in (("min", min), ("median", median), ("max", max)):
            row[f"{title}, ms"] = 1e3 * of(own) if own else "out of memory"
        row["ratio"] = median(a / b for a, b in zip(own, base, strict=True)) if own and base else "-"
        rows.append(row | case.told())
    return rows


def _fits(case: Case) -> bool:
    try:
        _finish(case)
    except torch.OutOfMemoryError:
        return False
    return True


def _finish(case: Case) -> None:
    """Runs a case until its device is done."""
    case.run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
