"""A process that forks a child for each test that kills or stops something: whole commands, small fits, a fake GPU.

    python fork_server.py    reads lines: {"run": "module:function", "folder": ..., options} or {"wait": pid}

A line with "run" starts a child, which calls the function in the folder, and is answered by its pid; "wait" by its
exit code (negative: the signal that ended it). The server has imported everything and computes nothing but kernels,
so that its children may fork from it safely, and a test costs tenths of a second instead of the seconds that the
imports take.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import disk, storage_faults
from tests.support.waiting import when


class Server:
    """Runs a function in children of one process, which all tests of a process share."""

    def __init__(self, function: str) -> None:
        self.function = function

    def start(self, folder: Path, **options: Any) -> int:
        """Start a run in a folder and return its process id."""
        return _ask({"run": self.function, "folder": str(folder), **options})

    def wait(self, pid: int) -> int:
        return _ask({"wait": pid})

    def run(self, folder: Path, **options: Any) -> int:
        """Start a run, wait for it and return its exit code."""
        return self.wait(self.start(folder, **options))

    def held(self, folder: Path, **options: Any) -> int:
        """Start a run with `hold_at` and return its process id when it has come there."""
        for name in ("held", "go"):
            (folder / name).unlink(missing_ok=True)
        pid = self.start(folder, **options)
        when((folder / "held").exists, seconds=600)
        return pid

    def signalled(self, folder: Path, number: int, **options: Any) -> int:
        """Send a signal to a run in the middle of step `hold_at` and return its exit code."""
        pid = self.held(folder, **options)
        os.kill(pid, number)
        (folder / "go").touch()
        return self.wait(pid)

    def killed(self, folder: Path, **options: Any) -> None:
        """Kill a run in the middle of step `hold_at`."""
        assert self.signalled(folder, signal.SIGKILL, **options) == -signal.SIGKILL, log(folder)


def log(folder: Path) -> str:
    """Return what the runs in a folder have written to stdout and stderr so far."""
    path = folder / "log.txt"
    return path.read_text() if path.exists() else ""


@functools.cache
def _process() -> subprocess.Popen[str]:
    variables = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "CI")}
    root = Path(__file__).resolve().parents[2]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, **variables, **storage_faults.preloaded(), "PYTHONPATH": str(root)}
    made = subprocess.Popen([sys.executable, __file__], **pipes, text=True, cwd=root, env=environment)
    atexit.register(made.kill)
    return made


def _ask(order: dict[str, Any]) -> int:
    if not hasattr(os, "fork"):
        import pytest

        pytest.skip("needs fork")
    process = _process()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(order) + "\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def _child(run: str, folder: str, **options: Any) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    output = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 70
    try:
        module, _, function = run.partition(":")
        code = getattr(importlib.import_module(module), function)(folder=folder, **options)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _import_everything() -> None:
    import imageio_ffmpeg  # noqa: F401
    import torch

    import threedgen.cli
    import threedgen.representations.march.numba_kernels
    import threedgen.systems.batch.jobs
    import threedgen.systems.dreambooth.task
    import threedgen.systems.generate.optimise  # noqa: F401  what every child needs
    import threedgen.systems.generate.task
    import threedgen.systems.novel_view.task
    import threedgen.systems.sample.task
    import threedgen.systems.train.mvadapter
    import threedgen.systems.train.mvdiffusion
    import threedgen.toybox.training.matte
    import threedgen.toybox.training.task
    import threedgen.train.loop
    import threedgen.train.ranks
    import threedgen.viewer.gallery
    from threedgen.run import dtypes

    dtypes.bf16_cpu = lambda: False  # the same bytes on all CPUs
    threedgen.toybox.training.system.SHEET_PROMPTS = ("a red dog",)
    trainings = threedgen.systems.train
    for sheet in (trainings.mvadapter, trainings.mvdiffusion_systems, threedgen.systems.novel_view.task):
        sheet.SHEET_STEPS = 2
    small = threedgen.toybox.training.coarse_systems
    small.BATCH, small.FIRST_OBJECTS = 4, 8
    torch.set_num_threads(1)


def load_kernels() -> None:
    """Load what numba needs, and the kernels without threads. No backward pass: a child may add a device."""
    import torch

    from threedgen.representations.hashgrid import numba_kernels, torch_twin

    levels = torch_twin.grid_levels(2, 4, 16, 2.0)
    x, table = torch.zeros(2, 3), torch.zeros(levels.entries, 2)
    grad = numba_kernels.encode(x, table, levels)
    numba_kernels.scatter(x, grad, levels)
    numba_kernels.position_gradient(x, table, grad, levels)


def serve() -> None:
    disk.never_wait()
    gc.collect()
    gc.freeze()  # children neither traverse nor copy what was imported
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if not pid:
            _child(**order)
        print(pid, flush=True)


if __name__ == "__main__":
    _import_everything()
    load_kernels()
    serve()
