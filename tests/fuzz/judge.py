"""Gives broken inputs to a reader, each in a forked child with bounds, and says what came of it.

    python tests/fuzz/judge.py        then lines on stdin: {"reader": ..., "cases": ..., "seed": ...}

A line is answered by {"counts": {outcome: how many}, "bad": ["damage -> what happened", ...]}. Case 0 is the good
input. The process computes nothing itself, so that its children may fork from it safely.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz.mutations import TRAP, damage
from tests.fuzz.readers import READERS, Reader

GOOD = ("clean error", "accepted")
BAD = ("not finite", "exception", "hang", "memory", "code run")
SECONDS, MEBIBYTES = 60, 1024
"""That a reader may take of a small input, on a busy core, and that its memory may grow."""


def finite(value: Any) -> bool:
    """Are all numbers in tensors, arrays and lists of them finite?"""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    return not isinstance(value, (float, np.ndarray)) or bool(np.isfinite(value).all())


def outcome(reader: Reader, folder: Path) -> tuple[str, str]:
    """What the reader makes of the folder: one of GOOD or BAD, and in what words."""
    from threedgen.run.metrics import peak_memory

    before = peak_memory() or 0.0
    try:
        value = reader.read(folder)
        found = ("accepted" if finite(value) else "not finite"), ""
    except reader.clean as error:
        lines = str(error).splitlines()
        clean = lines and all(line.isprintable() and len(line) < 1500 for line in lines)
        found = ("clean error" if clean else "exception"), str(error)[:300]
    except MemoryError:
        found = "memory", "MemoryError"
    except BaseException as error:
        memory = "can't allocate memory" in str(error)
        found = ("memory" if memory else "exception"), f"{type(error).__name__}: {str(error)[:300]}"
    if (peak_memory() or 0.0) - before > MEBIBYTES:
        found = "memory", f"{(peak_memory() or 0.0) - before:.0f} MiB, {found[1]}"
    return ("code run", found[1]) if (folder / TRAP).exists() else found


def tried(reader: Reader, folder: Path) -> tuple[str, str]:
    """The same in a child of its own, whose time and memory are bounded, too."""
    there, here = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(there)
        os.chdir(folder)
        log = os.open(os.devnull, os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 4 * MEBIBYTES * 2**20,) * 2)
        try:
            os.write(here, json.dumps(outcome(reader, folder)).encode())
        finally:
            os._exit(0)
    os.close(here)
    end = time.monotonic() + SECONDS
    done = 0
    while not done and time.monotonic() < end:
        done, _ = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)
    if not done:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with open(there, "rb") as pipe:
        said = pipe.read()
    if not said:
        return ("exception", "the process died") if done else ("hang", f"after {SECONDS} s")
    kind, words = json.loads(said)
    return kind, words


def made(reader: Reader, folder: Path) -> None:
    """The good input, made in a child, so that this process stays without threads."""
    folder.mkdir()
    kind, words = tried(Reader(reader.name, reader.make, reader.make), folder)
    assert kind == "accepted", words


def judged(name: str, cases: int, seed: int) -> dict[str, Any]:
    """Counts the outcomes of `cases` damages, of which each is decided by its number and the seed."""
    reader, counts, bad = READERS[name], dict.fromkeys((*GOOD, *BAD), 0), []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        good, case = Path(place) / "good", Path(place) / "case"
        made(reader, good)
        for number in range(cases + 1):
            shutil.copytree(good, case)
            rng = random.Random(f"{name} {seed} {number}")
            files = sorted(path for path in case.glob(reader.damaged) if path.is_file())
            what = damage(rng.choice(files), rng) if number else "nothing"
            kind, words = tried(reader, case)
            if number:
                counts[kind] += 1
            if kind in BAD or (not number and kind != "accepted"):
                bad.append(f"{number} {what} -> {kind}: {words}")
            shutil.rmtree(case)
    return {"counts": counts, "bad": bad}


def prepare() -> None:
    """Imports once for all children what the readers import."""
    import trimesh  # noqa: F401

    import threedgen.data.coloured_mesh
    import threedgen.evaluation.consistency.samplers
    import threedgen.evaluation.toybox.probe
    import threedgen.export.task
    import threedgen.guidance.threedim.port
    import threedgen.systems.generate.task
    import threedgen.systems.novel_view.image_to_3d
    import threedgen.viewer.report  # noqa: F401
    from tests.support import example_run, photographs, task_server, tiny_prior, tiny_threedim  # noqa: F401

    torch.set_num_threads(1)
    task_server._load_kernels()


def serve() -> None:
    prepare()
    for line in sys.stdin:
        order = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            answer = judged(order["reader"], order["cases"], order["seed"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
