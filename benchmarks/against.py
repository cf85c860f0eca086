"""Compare the CPU time of a run of this checkout with that of another checkout, in interleaved pairs of runs.

    git worktree add ../old b93c01b
    python -m benchmarks.against ../old --pairs 10 --config quick-toybox trainer.max_steps=20

User and system time count, so that other load on the machine matters little.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from threedgen.evaluation.metrics.figures import bootstrap

HERE = Path(__file__).resolve().parents[1]


def cpu_seconds(checkout: Path, words: list[str]) -> float:
    """Return the CPU time in seconds of launch.py of a checkout, called with the arguments `words`.

    Raises CalledProcessError if the run fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(checkout / "launch.py"), "--quiet", f"out={folder}/run", *words]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        subprocess.run(command, check=True, cwd=checkout, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--config", default="quick-toybox")
    parser.add_argument("overrides", nargs="*", help="key=value")
    args = parser.parse_intermixed_args()
    words = ["--config", args.config, "prompt=a red dog", *args.overrides]
    pairs = []
    for number in range(-1, args.pairs):  # the first pair compiles the kernels
        order = (args.other.resolve(), HERE) if number % 2 else (HERE, args.other.resolve())
        times = {place: cpu_seconds(place, words) for place in order}
        if number >= 0:
            pairs.append((times[args.other.resolve()], times[HERE]))
            print(f"pair {number + 1}: other {pairs[-1][0]:.2f} s, here {pairs[-1][1]:.2f} s", flush=True)
    other, here = np.array(pairs).T
    low, high = bootstrap(list(here - other)) or (float("nan"),) * 2
    print(f"other {other.mean():.2f} s, here {here.mean():.2f} s of CPU, {len(pairs)} pairs")
    print(f"difference {(here - other).mean():+.2f} s (95 % interval {low:+.2f} to {high:+.2f})")


if __name__ == "__main__":
    main()
