"""python -m benchmarks NAME ... [--out FILE] [key=value ...] (README.md in this folder)."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path

from threedgen.config.errors import ConfigError

BENCHMARKS = {
    "hashgrid": "the hash grid: numba against torch",
    "convolution": "3 x 3 convolutions of priors on a CPU: Winograd's against PyTorch's",
    "step": "a generate step of the default config, against torch twins without empty-space skipping",
    "mvdream": "a step of mvdream-sd21 and mvdream-sd21-shading with random weights, against plain torch; for a GPU",
    "mvdiffusion": "a denoising step of MVDiffusion's panorama network with random weights, against the reference",
    "mvadapter": "a training step of MV-Adapter around toybox-base, against fine-tuning all of it as MVDream does",
    "asset_views": "rendering of users' assets by processes and on a Ray cluster, one of whose nodes is killed",
    "janus": "what the Janus benchmark adds to jobs that only wait",
    "whole_run": "quick-toybox from the command to the asset: alone, and beside a job that keeps one core busy",
    "export": "game-ready assets, of synthetic fields or of runs, against the fields and their bars",
}
"""What each measures; its module (benchmarks/NAME.py) has a function `table` of the options that it names."""


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures speed, each figure beside a baseline of the same run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="benchmarks:\n" + "\n".join(f"  {name:<12}{about}" for name, about in BENCHMARKS.items()),
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="NAME | key=value",
        help="a benchmark, or an option of the config that step and mvdream measure, such as threads=2",
    )
    parser.add_argument("--rounds", type=int, default=3, help="repeats of every measurement (default 3)")
    parser.add_argument("--size", type=int, default=64, help="pixels of the renders, or views, in a step (default 64)")
    parser.add_argument("--seeds", type=int, default=5, help="fields of each shape to export (default 5)")
    parser.add_argument("--grid", type=int, default=256, help="grid points along an edge (export, default 256)")
    parser.add_argument("--assets", type=int, default=64, help="meshes to render (asset_views, default 64)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each job that only waits (janus, default 10)")
    parser.add_argument("--reference", type=Path, help="clone of MVDiffusion's own code (mvdiffusion)", metavar="PATH")
    parser.add_argument("--views", type=int, default=8, help="views of a panorama (mvdiffusion, default 8)")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps (mvdiffusion, default 1)")
    widths = "of the levels of the UNet, multiples of 64 (mvdiffusion, default 320,640,1280,1280)"
    parser.add_argument("--widths", type=numbers, default=(320, 640, 1280, 1280), help=widths)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="mvdiffusion and mvadapter, default cpu"
    )
    runs = "folder of a run for its field (step), or of runs (export)"
    parser.add_argument("--run", type=Path, nargs="+", help=runs, dest="runs", metavar="RUN")
    parser.add_argument("--out", type=Path, help="JSON file for the tables and the machine they come from")
    given = parser.parse_intermixed_args(words)
    given.names = [word for word in given.words if "=" not in word]
    given.overrides = [word for word in given.words if "=" in word]
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown or not given.names:
        wrong = f"there is no benchmark {unknown[0]!r}" if unknown else "name a benchmark"
        parser.error(f"{wrong}; there are: {', '.join(BENCHMARKS)}")
    if (
        min(given.rounds, given.seeds, given.steps, given.assets) < 1
        or given.size < 8
        or not 64 <= given.grid <= 512
        or not given.seconds > 0
    ):
        parser.error(
            "--rounds, --seeds, --steps and --assets should be at least 1, --size 8, --grid 64 to 512, --seconds more "
            "than 0"
        )
    return given


def numbers(words: str) -> tuple[int, ...]:
    """Reads whole numbers between commas."""
    return tuple(int(word) for word in words.split(","))


def main(words: list[str] | None = None) -> int:
    """Measures, prints, and writes the record."""
    given = arguments(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from threedgen.run.metrics import environment  # after the options are checked

    tables = []
    for name in given.names:
        table = importlib.import_module(f"{__package__}.{name}").table
        tables.append(table(**{option: getattr(given, option) for option in inspect.signature(table).parameters}))
        print(tables[-1].text() + "\n", flush=True)
    if given.out is not None:
        record = {"options": given.overrides, "tables": [asdict(made) for made in tables], "machine": environment()}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
