"""python -m benchmarks [hashgrid] [step] [breakdown] [memory] [export [runs=...]] [mvdream] [threedim] [janus] ..."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from threedgen.config.errors import ConfigError

PARTS = ("hashgrid", "step", "breakdown", "memory")
LONG = ("export", "mvdream", "threedim", "janus")
"""Measured only when they are asked for: many assets, what is meant for a GPU, novel views and their score, workers
of the Janus benchmark."""
RUNS = "runs="


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed of the parts and of a whole step, as tables."
    )
    parser.add_argument(
        "words", nargs="*", metavar="PART | key=value",
        help=f"what to measure ({', '.join(PARTS)}; default: all these; or {', '.join(LONG)}), and options of "
        "the config mvdream-toybox, such as prior.weights=FOLDER or threads=2; runs=FOLDER or runs=[RUN, RUN]: assets "
        "of these, not of synthetic fields",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="repeats of every measurement (default 3)")
    parser.add_argument("--size", type=int, default=64, help="pixels of the renders in a step (default 64)")
    parser.add_argument("--ablations", action="store_true", help="also the twins alone, no skipping alone")
    parser.add_argument("--seeds", type=int, default=5, help="fields of each shape to export (default 5)")
    parser.add_argument("--grid", type=int, default=256, help="grid points along an edge to export (default 256)")
    parser.add_argument("--longer", action="store_true", help="also the fit of ten times as many steps (threedim)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each job that only waits (janus, default 10)")
    parser.add_argument("--run", type=Path, help="take the field from this run, not from pictures of a dog")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"), help="folder of the results")
    given = parser.parse_intermixed_args(words)
    given.parts = [word for word in given.words if "=" not in word] or list(PARTS)
    given.runs = next((word.removeprefix(RUNS) for word in reversed(given.words) if word.startswith(RUNS)), None)
    given.overrides = [word for word in given.words if "=" in word and not word.startswith(RUNS)]
    for part in given.parts:
        if part not in PARTS + LONG:
            parser.error(f"there is no part {part!r}; there are: {', '.join(PARTS + LONG)}")
    if given.runs is not None and "export" not in given.parts:
        parser.error("runs= belongs to the part export; try: export runs=FOLDER")
    if given.rounds < 1 or given.size < 8:
        parser.error("--rounds should be at least 1 and --size at least 8")
    if given.seeds < 1 or not 64 <= given.grid <= 512:
        parser.error("--seeds should be at least 1 and --grid between 64 and 512")
    if not given.seconds > 0:
        parser.error("--seconds should be more than 0")
    return given


def main(words: list[str] | None = None) -> int:
    """Measure, print, and write benchmarks.json and benchmarks.md."""
    given = arguments(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # after the options are checked: these take seconds
    from . import breakdown, export, hashgrid, janus, memory, mvdream, step, threedim
    from .clock import machine
    from .scene import Bench

    tables = []
    jobs: list[export.Job] = []
    if "export" in given.parts:
        of = {"grid": given.grid, "out": str((given.out / "assets").resolve())}
        jobs = export.synthetic(given.seeds, **of) if given.runs is None else export.of_runs(given.runs, **of)
    bench = Bench(given.overrides, given.run) if set(given.parts) & {"step", "breakdown"} else None
    about = machine()
    if "hashgrid" in given.parts:
        tables.append(hashgrid.table(given.rounds))
        print(tables[-1].text() + "\n", flush=True)
    if bench is not None and "step" in given.parts:
        tables.append(step.table(bench, given.rounds, given.size, given.ablations))
        print(tables[-1].text() + "\n", flush=True)
    if bench is not None and "breakdown" in given.parts:
        tables.append(breakdown.table(bench, given.rounds, given.size))
        print(tables[-1].text() + "\n", flush=True)
    if "memory" in given.parts:
        tables.append(memory.table(given.size, given.overrides))
        print(tables[-1].text() + "\n", flush=True)
    if "export" in given.parts:
        tables.append(export.table(jobs))
        print(tables[-1].text() + "\n", flush=True)
    if "mvdream" in given.parts:
        for made in mvdream.tables(given.size, given.rounds, given.overrides):
            tables.append(made)
            print(made.text() + "\n", flush=True)
    if "threedim" in given.parts:
        for made in threedim.tables(given.rounds, given.longer):
            tables.append(made)
            print(made.text() + "\n", flush=True)
    if "janus" in given.parts:
        tables.append(janus.table(given.seconds))
        print(tables[-1].text() + "\n", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": about, "options": given.overrides, "tables": [table.json() for table in tables]}
    (given.out / "benchmarks.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    lines = "".join(f"- {name}: {value}\n" for name, value in about.items())
    text = "\n".join(table.markdown() for table in tables)
    (given.out / "benchmarks.md").write_text(f"# Benchmarks\n\n{lines}\n{text}", encoding="utf-8")
    print(f"{given.out}/benchmarks.md, {given.out}/benchmarks.json")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
