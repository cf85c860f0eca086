"""Paired timing: cases run in turn, and each time is compared with the time of the baseline in the same round."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from statistics import median
from typing import NamedTuple

import torch

from .table import Row


class Case(NamedTuple):
    """Function to time, and the number of steps or other units that one call executes."""

    run: Callable[[], object]
    count: int = 1


def paired(cases: Mapping[str, Case], baseline: str, rounds: int) -> list[Row]:
    """Time the cases in interleaved rounds, after one untimed call of each, so that other load affects all cases.

    Returns one row per case with minimum, median and maximum time per unit in ms, and the median over the rounds of the
    ratio to the case `baseline` (below 1 is faster); on a GPU also the peak memory in GB. A case that runs out of GPU
    memory has no times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    peak: dict[str, float] = {}
    for name, case in cases.items():
        with suppress(torch.OutOfMemoryError):
            peak[name] = _run(case)
    for _ in range(rounds):
        for name in peak:
            start = time.perf_counter()
            peak[name] = _run(cases[name])
            seconds[name].append((time.perf_counter() - start) / cases[name].count)
    rows = []
    for name in cases:
        own, base = seconds[name], seconds[baseline]
        row: Row = {"case": name}
        for title, statistic in (("min", min), ("median", median), ("max", max)):
            row[f"{title}, ms"] = 1e3 * statistic(own) if own else "out of memory"
        row["ratio"] = median(a / b for a, b in zip(own, base, strict=True)) if own and base else "-"
        rows.append(row | ({"peak GB": peak.get(name, "-")} if torch.cuda.is_available() else {}))
    return rows


def _run(case: Case) -> float:
    """Run a case and wait for the GPU; return the peak GPU memory in GB, or 0 without a GPU."""
    if not torch.cuda.is_available():
        case.run()
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    case.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9
