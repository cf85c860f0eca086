"""How things are timed, and the machine they are timed on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numba
import torch


def interleaved(cases: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case, round by round in turn, so that a busy moment of the machine meets all of them.

    Every case runs once before, untimed: compiling, caches, first allocations.
    """
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            begun = time.perf_counter()
            case()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times faster, the median over the rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load at the start": None if load is None else round(load, 1),
        "torch threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "bf16 instructions": bool(getattr(torch.cpu, "get_capabilities", dict)().get("avx512_bf16")),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
