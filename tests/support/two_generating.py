"""A tiny run of mvdream-sd21-shading on two CPU processes, each with its own cameras and shading.

python two_generating.py FOLDER CHUNK        Lightning starts the second process by the same command
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests.support.small_run import SMALL, small_field
from tests.support.tiny_prior import tiny_prior
from tests.support.toy_run import digest
from threedgen.config import load
from threedgen.representations.shading import Shading
from threedgen.systems.generate.system import GenerateSystem
from threedgen.train.loop import fit

STEPS = 12
WORDS = [
    "prompt=a red dog", *SMALL, *small_field(), "size=8", "scenes_per_step=1", "occupancy.warmup=4",
    "occupancy.interval=2", "material.ambient_only_steps=3", "trainer.devices=2", f"trainer.max_steps={STEPS}",
    "trainer.precision=32-true", "trainer.val_check_interval=0",
]  # fmt: skip


if __name__ == "__main__":
    config: Any = load("mvdream-sd21-shading", [*WORDS, f"march.chunk={sys.argv[2]}"])
    prior = tiny_prior()
    system = GenerateSystem(config, prior, prior.encode_prompt(["a red dog", ""]))
    before = [p.detach().clone() for p in system.parameters()]
    sample, modes = system.material.sample_shading, list[str]()

    def record(*args: Any) -> Shading:
        shading = sample(*args)
        modes.append(shading.mode)
        return shading

    system.material.sample_shading = record  # type: ignore[method-assign]
    status = fit(system, config, Path(sys.argv[1]), quiet=True)
    trained = [not torch.equal(a, b) for a, b in zip(before, system.parameters(), strict=True)]
    words = status.value, system.trainer.world_size, system.trainer.global_step, all(trained), digest(system)
    os.write(1, (" ".join([*map(str, words), ",".join(modes)]) + "\n").encode())  # one call, as in two_devices.py
