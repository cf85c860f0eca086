"""Fuzzing process: runs readers on damaged inputs, each in a forked child with time and memory limits.

    python tests/fuzz/judge.py        then lines on stdin: {"reader": ..., "cases": ..., "seed": ...}

The answer to a line is {"counts": {outcome: number}, "bad": ["damage -> outcome", ...]}. Case 0 is the undamaged input.
The process itself computes nothing and starts no threads, so that forking is safe.
"""

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
SECONDS, MEBIBYTES = 30, 2048  # limits of a reader on a small input: time on a busy core, memory growth


def finite(value: Any) -> bool:
    """Return whether all numbers in nested tensors, arrays, lists and dicts are finite."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    return not isinstance(value, (float, np.ndarray)) or bool(np.isfinite(value).all())


def outcome(reader: Reader, folder: Path) -> tuple[str, str]:
    """Read the folder; return the outcome (one of GOOD or BAD) and the error message."""
    from threedgen.run.metrics import peak_memory

    before = peak_memory() or 0.0
    try:
        value = reader.read(folder)
        result = ("accepted" if finite(value) else "not finite"), ""
    except reader.clean as error:
        lines = str(error).splitlines()
        clean = lines and all(line.isprintable() and len(line) < 1500 for line in lines)
        result = ("clean error" if clean else "exception"), str(error)[:300]
    except MemoryError:
        result = "memory", "MemoryError"
    except BaseException as error:
        memory = "can't allocate memory" in str(error)
        result = ("memory" if memory else "exception"), f"{type(error).__name__}: {str(error)[:300]}"
    if (peak_memory() or 0.0) - before > MEBIBYTES:
        result = "memory", f"{(peak_memory() or 0.0) - before:.0f} MiB, {result[1]}"
    return ("code run", result[1]) if (folder / TRAP).exists() else result


def isolated_outcome(reader: Reader, folder: Path) -> tuple[str, str]:
    """Return `outcome` from a forked child with limited time and memory."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read_end)
        os.chdir(folder)
        log = os.open(os.devnull, os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MEBIBYTES * 2**20,) * 2)
        try:
            os.write(write_end, json.dumps(outcome(reader, folder)).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    end = time.monotonic() + SECONDS
    done = 0
    while not done and time.monotonic() < end:
        done, _ = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.005)
    if not done:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with open(read_end, "rb") as pipe:
        answer = pipe.read()
    if not answer:
        return ("exception", "the process died") if done else ("hang", f"after {SECONDS} s")
    kind, message = json.loads(answer)
    return kind, message


def make_input(reader: Reader, folder: Path) -> None:
    """Write the undamaged input in a child, so that this process starts no threads."""
    folder.mkdir()
    kind, message = isolated_outcome(Reader(reader.name, reader.make, reader.make), folder)
    assert kind == "accepted", message


def fuzz(name: str, cases: int, seed: int) -> dict[str, Any]:
    """Run a reader on `cases` damaged inputs and count the outcomes; case number and seed determine the damage."""
    reader, counts, bad = READERS[name], dict.fromkeys((*GOOD, *BAD), 0), []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        good, case = Path(temporary) / "good", Path(temporary) / "case"
        make_input(reader, good)
        for number in range(cases + 1):
            shutil.copytree(good, case)
            rng = random.Random(f"{name} {seed} {number}")
            files = sorted(path for path in case.glob(reader.damaged) if path.is_file())
            what = damage(rng.choice(files), rng) if number else "nothing"
            kind, message = isolated_outcome(reader, case)
            if number:
                counts[kind] += 1
            if kind in BAD or (not number and kind != "accepted"):
                bad.append(f"{number} {what} -> {kind}: {message}")
            shutil.rmtree(case)
    return {"counts": counts, "bad": bad}


def prepare() -> None:
    """Import what the readers import lazily, before forking."""
    import trimesh  # noqa: F401

    import threedgen.systems.generate.task
    import threedgen.viewer.report  # noqa: F401
    from tests.support import fork_server

    torch.set_num_threads(1)
    fork_server.load_kernels()


def serve() -> None:
    prepare()
    for line in sys.stdin:
        request = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            answer = fuzz(request["reader"], request["cases"], request["seed"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
