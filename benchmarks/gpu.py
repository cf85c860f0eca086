"""Check and measure everything that runs on a GPU, in stages within a few minutes; without a GPU, with small sizes.

Each stage is a process of its own with a time limit, so a stage that hangs or fails does not affect the others. A stage
appends each result to FOLDER/results.jsonl at once. FOLDER/table.md is written anew after each stage, FOLDER/log.txt
holds the output of all stages, and FOLDER/profiles.txt the operators that take the most time in a step.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from threedgen.config.errors import ConfigError

from .table import Row, Table

ROOT = Path(__file__).parents[1]


class Stage(NamedTuple):
    """Stage of the benchmark: `function` of benchmarks/`module`.py, and its time limit in seconds."""

    module: str
    function: str
    seconds: float


STAGES = {
    "machine": Stage("gpu_machine", "machine", 25),
    "vae": Stage("gpu_networks", "vae", 25),
    "sampling": Stage("gpu_networks", "sampling", 30),
    "unet": Stage("gpu_networks", "unet", 35),
    "kernels": Stage("gpu_kernels", "kernels", 40),
    "loop": Stage("gpu_steps", "loop", 40),
    "step-64": Stage("gpu_steps", "step_64", 40),
    "step-256": Stage("gpu_steps", "step_256", 45),
    "step-shading": Stage("gpu_steps", "step_shading", 50),
    "tests": Stage("gpu_machine", "tests", 30),
}
"""Name -> stage, in the order of the run, cheap ones first. The limits add up to the six minutes of a whole run; the
last stage also gets the time that the others leave."""
SHORTEST = 10.0  # a stage is left out if fewer seconds are left


def table(minutes: float, small: bool, folder: Path, stages: list[str]) -> Table:
    """Run stages and return a row for each.

    Args:
        minutes: time limit of all stages.
        small: whether to use small sizes on the CPU.
        folder: folder of the results.
        stages: names of the stages to run; []: all. Raises ConfigError if a name is unknown.
    """
    if unknown := [name for name in stages if name not in STAGES]:
        raise ConfigError(f"unknown stage. Choose from: {', '.join(STAGES)}", "--stages", ",".join(unknown))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "log.txt", "profiles.txt"):
        (folder / name).write_text("", encoding="utf-8")
    end, rows = time.monotonic() + 60 * minutes, list[Row]()
    names = stages or list(STAGES)
    for name in names:
        began = time.monotonic()
        limit = float("inf") if name == names[-1] else STAGES[name].seconds
        status = run_stage(name, folder, small, min(limit, end - began))
        took, failed = (
            time.monotonic() - began,
            [r for r in read(folder) if r["stage"] == name and r.get("ok") is False],
        )
        status = f"{len(failed)} failed: {', '.join(str(r['case']) for r in failed)}" if failed else status
        rows.append({"stage": name, "status": status, "seconds": took})
        (folder / "table.md").write_text(text(folder, rows), encoding="utf-8")
        print(f"{name}: {status}, {took:.0f} s", flush=True)
    return Table("GPU", rows, [f"Results: {folder / 'table.md'}"])


def run_stage(name: str, folder: Path, small: bool, seconds: float) -> str:
    """Run a stage in a process for at most `seconds`, and return "finished" or the reason why it did not finish."""
    if seconds < SHORTEST:
        return "left out: no time left"
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        log.write(f"\n--- {name}\n")
        log.flush()
        process = subprocess.Popen(
            command(name, folder, small), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            end_process(process)
            return f"killed after {seconds:.0f} s"
        except BaseException:  # Ctrl-C
            end_process(process)
            raise
    return "finished" if code == 0 else f"failed with exit code {code}, see log.txt"


def command(name: str, folder: Path, small: bool) -> list[str]:
    """Return the command line of a stage's process."""
    return [sys.executable, "-m", f"{__package__}.gpu_stage", name, str(folder), *(["--small"] if small else [])]


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Kill a stage and the processes that it has started."""
    import psutil  # type: ignore[import-untyped]

    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    for each in (*children, process):
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def read(folder: Path) -> list[Row]:
    """Return the results in results.jsonl. An incomplete line of a killed stage is left out."""
    rows = []
    for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def text(folder: Path, stages: list[Row]) -> str:
    """Return the rows of the stages and all results in `folder` as Markdown tables."""
    results: list[Row] = []
    for row in read(folder):
        values = {name: value for name, value in row.items() if name not in ("stage", "case")}
        result = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
        )
        results.append({"stage": row["stage"], "case": row["case"], "result": result})
    tables = [Table("Stages", stages), *([Table("Results", results)] if results else [])]
    return "\n\n".join(table.text().rstrip() for table in tables) + "\n"
