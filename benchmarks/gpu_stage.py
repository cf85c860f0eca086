"""Entry point for one stage of the GPU benchmark: python -m benchmarks.gpu_stage STAGE FOLDER [--small]."""

import importlib
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from .gpu import STAGES


class Bench:
    """Device, size and result files of a stage, with functions that measure time and memory.

    Attributes:
        device: the GPU, or the CPU if `small`.
        small: whether networks and images are small, so that a stage takes seconds on a CPU; always True without a GPU.
        folder: folder of the results.
    """

    def __init__(self, stage: str, folder: Path, small: bool) -> None:
        self.stage, self.folder, self.small = stage, folder, small or not torch.cuda.is_available()
        self.device = torch.device("cpu" if self.small else "cuda:0")

    def record(self, case: str, **values: object) -> None:
        """Append a result to results.jsonl and print it: the name `case` and `values`, such as ms=3.2.

        ok=False in `values` marks the case as failed.
        """
        line = json.dumps({"stage": self.stage, "case": case, **values}, default=str)
        with (self.folder / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Return a context that catches an exception and records the case `name` as failed; the stage continues."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.record(name, ok=False, error=f"{type(error).__name__}: {str(error)[:300]}")
            self.empty_cache()

    def milliseconds(self, run: Callable[[], object], repeats: int = 10, warmup: int = 2) -> float:
        """Return the median time of `repeats` calls of `run` in ms, after `warmup` untimed calls.

        A call ends when the GPU has finished.
        """
        times = []
        for k in range(warmup + repeats):
            self.synchronise()
            start = time.perf_counter()
            run()
            self.synchronise()
            if k >= warmup:
                times.append(1e3 * (time.perf_counter() - start))
        return median(times)

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def empty_cache(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def peak(self) -> Iterator[Callable[[], float]]:
        """Yield a function that returns the peak GPU memory in GB since the start of the context; 0 on the CPU."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            yield lambda: torch.cuda.max_memory_allocated() / 1e9
        else:
            yield lambda: 0.0

    def note(self, title: str, lines: str) -> None:
        """Append a section with a title to profiles.txt."""
        with (self.folder / "profiles.txt").open("a", encoding="utf-8") as file:
            file.write(f"## {title}\n\n{lines}\n\n")


def main(stage: str, folder: str, *flags: str) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    module, function, _ = STAGES[stage]
    getattr(importlib.import_module(f"{__package__}.{module}"), function)(Bench(stage, Path(folder), bool(flags)))


if __name__ == "__main__":
    main(*sys.argv[1:])
