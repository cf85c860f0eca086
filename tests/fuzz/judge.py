"""Readers on damaged inputs, each in a forked child with time and memory limits.

`fuzz` runs in a child of fork_server.py, computes nothing and starts no threads, so that forking is safe.
"""

import json
import os
import random
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants
from torch.utils._pytree import tree_leaves

from tests.fuzz.mutations import TRAP, damage
from tests.fuzz.readers import READERS, Reader
from threedgen.config import ConfigError
from threedgen.run.metrics import peak_memory

GOOD = ("clean error", "accepted")
BAD = ("not finite", "exception", "hang", "memory", "code run")
SECONDS, MEBIBYTES = 30, 2048  # limits of a reader on a small input: time on a busy core, memory growth


def finite(value: Any) -> bool:
    """Return whether all numbers in nested tensors, arrays, lists and dicts are finite."""
    numbers = (leaf for leaf in tree_leaves(value) if isinstance(leaf, (float, np.ndarray, torch.Tensor)))
    return all(bool(torch.as_tensor(number).isfinite().all()) for number in numbers)


def outcome(reader: Reader, folder: Path) -> tuple[str, str]:
    """Read the folder; return the outcome (one of GOOD or BAD) and the error message."""
    before = peak_memory() or 0.0
    try:
        value = reader.read(folder)
        result = ("accepted" if finite(value) else "not finite"), ""
    except ConfigError as error:
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
        os.chdir(folder)
        signal.alarm(SECONDS)  # ends the process
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MEBIBYTES * 2**20,) * 2)
        try:
            os.write(write_end, json.dumps(outcome(reader, folder)).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not answer:
        return ("hang", f"after {SECONDS} s") if code == -signal.SIGALRM else ("exception", f"exit code {code}")
    kind, message = json.loads(answer)
    return kind, message


def fuzz(folder: str, name: str, cases: int, seed: int) -> int:
    """Run a reader on `cases` damaged inputs; case number and seed determine the damage, and case 0 is undamaged.

    Writes {"counts": {outcome: number}, "bad": ["damage -> outcome", ...]} to result.json.
    """
    constants.HF_HUB_OFFLINE = True
    reader, counts, bad = READERS[name], dict.fromkeys((*GOOD, *BAD), 0), []
    good, case = Path(folder, "good"), Path(folder, "case")
    good.mkdir()
    kind, message = isolated_outcome(Reader(reader.make, reader.make), good)  # its threads end with the child
    assert kind == "accepted", message
    for number in range(cases + 1):
        shutil.copytree(good, case)
        rng = random.Random(f"{name} {seed} {number}")
        files = sorted(path for path in case.glob(reader.damaged) if path.is_file())
        what = damage(rng.choice(files), rng) if number else "nothing"
        kind, message = isolated_outcome(reader, case)
        counts[kind] += number > 0
        if kind in BAD or (not number and kind != "accepted"):
            bad.append(f"{number} {what} -> {kind}: {message}")
        shutil.rmtree(case)
    Path(folder, "result.json").write_text(json.dumps({"counts": counts, "bad": bad}))
    return 0
