"""Paired timing: cases take turns, and each is compared with a baseline of the same rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import median
from typing import NamedTuple

import torch

from .table import Row


class Case(NamedTuple):
    """What is timed; how many steps (or other units) a call makes."""

    run: Callable[[], object]
    count: int = 1


def paired(cases: Mapping[str, Case], baseline: str, rounds: int) -> list[Row]:
    """A row for each case: the least, median and greatest time of a unit, and its ratio to the baseline's, which is
    the median over the rounds: below 1 is faster; on a GPU also the most memory that it took.

    Cases are timed round by round in turn, so that a busy moment of the machine meets all of them. Every case runs
    once before, untimed: compiling, caches, first allocations. One that does not fit into the memory of a GPU there
    has no seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    peak: dict[str, float] = {}
    for name, case in cases.items():
        with suppress(torch.OutOfMemoryError):
            peak[name] = _finish(case)
    for _ in range(rounds):
        for name in peak:
            begun = time.perf_counter()
            peak[name] = _finish(cases[name])
            seconds[name].append((time.perf_counter() - begun) / cases[name].count)
    rows = []
    for name in cases:
        own, base = seconds[name], seconds[baseline]
        row: Row = {"case": name}
        for title, of in (("min", min), ("median", median), ("max", max)):
            row[f"{title}, ms"] = 1e3 * of(own) if own else "out of memory"
        row["ratio"] = median(a / b for a, b in zip(own, base, strict=True)) if own and base else "-"
        rows.append(row | ({"peak GB": peak.get(name, "-")} if torch.cuda.is_available() else {}))
    return rows


def _finish(case: Case) -> float:
    """Runs a case until its device is done; returns the most memory that it took of a GPU, in GB."""
    if not torch.cuda.is_available():
        case.run()
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    case.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9
