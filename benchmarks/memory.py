"""Peak memory of a training render against march.chunk, each in a process of its own: a peak never falls again.

    python -m benchmarks.memory SIZE CHUNK|null [key=value ...]        one measurement, as JSON
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .table import Row, Table

ROOT = Path(__file__).parents[1]
CONFIG = "mvdream-sd21-shading"
CHUNKS: tuple[int | None, ...] = (None, 1 << 20, 1 << 18, 1 << 16)
STEP = 6000
"""Past the first half: the views are of one object, and matter is lit."""


def measure(size: int, chunk: int | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Render four views of a new field with normals, and learn from them: MiB beyond what was held, seconds."""
    import torch

    from threedgen.config import load
    from threedgen.geometry.rigs import sample_multiview
    from threedgen.guidance.diffusion import Schedule
    from threedgen.representations import losses
    from threedgen.run.metrics import peak_memory
    from threedgen.run.seeding import generator
    from threedgen.systems.generate.system import GenerateSystem
    from threedgen.train.loop import set_threads

    config = load(CONFIG, ["prompt=nothing", f"march.chunk={'null' if chunk is None else chunk}", *overrides])
    set_threads(config.threads)
    system = GenerateSystem(config, SimpleNamespace(schedule=Schedule.scaled_linear()), torch.zeros(2, 1, 1))
    assert system.occupancy is not None
    system.occupancy.update(system.field.density, 0, generator(0, 0, "occupancy"))

    def learn(pixels: int) -> tuple[int, float]:
        rig = sample_multiview(config.camera, generator(0, STEP, "cameras"), STEP, height=pixels, width=pixels)
        seen = system.render(rig.cameras, STEP, training=True, grad=True, normals=True)
        loss = seen.rgb.square().mean() + losses.orientation(seen.away, seen.opacity)
        system.zero_grad()
        loss.backward()
        total = sum(float(p.grad.double().square().sum()) for p in system.parameters() if p.grad is not None)
        return len(seen.samples), total**0.5

    learn(4)  # kernels are compiled, and gradients are there
    before, begun = peak_memory() or 0.0, time.perf_counter()
    samples, norm = learn(size)
    return {
        "samples": samples,
        "mib": (peak_memory() or 0.0) - before,
        "seconds": time.perf_counter() - begun,
        "gradient": norm,
    }


def table(size: int, overrides: Sequence[str] = (), chunks: Sequence[int | None] = CHUNKS) -> Table:
    """A row for each chunk size, the whole render at once first."""
    rows: list[Row] = []
    samples = 0
    for chunk in chunks:
        command = [sys.executable, "-m", "benchmarks.memory", str(size), "null" if chunk is None else str(chunk)]
        done = subprocess.run([*command, *overrides], capture_output=True, text=True, cwd=ROOT)
        if done.returncode < 0:  # the system ends processes that take too much
            rows.append({"march.chunk": _name(chunk), "MiB": "killed", "seconds": "", "gradient norm": ""})
            continue
        done.check_returncode()
        found = json.loads(done.stdout.splitlines()[-1])
        samples = found["samples"]
        rows.append(
            {
                "march.chunk": _name(chunk),
                "MiB": f"{found['mib']:.0f}",
                "seconds": f"{found['seconds']:.1f}",
                "gradient norm": f"{found['gradient']:.6g}",
            }
        )
    words = "".join(f" {word}" for word in overrides)
    notes = [
        f"{CONFIG}{words}, 4 views of {size} x {size} with normals, a new field, {samples:,} samples, on a CPU; memory "
        "beyond that of the process before, without the prior."
    ]
    return Table("Memory of a training render", rows, notes)


def _name(chunk: int | None) -> str:
    return "null (one pass)" if chunk is None else str(chunk)


if __name__ == "__main__":
    size, chunk, *overrides = sys.argv[1:]
    print(json.dumps(measure(int(size), None if chunk == "null" else int(chunk), overrides)))
