"""Generate systems in the middle of their work, and steps of them without a run around.

How much empty space there is to skip decides the cost of a step, so a field just born says nothing. The one of `Bench`
is fitted to ground-truth pictures of a toybox dog, which takes seconds and needs no trained prior; or it comes from the
checkpoint of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from threedgen.config import load, registry
from threedgen.config.errors import ConfigError
from threedgen.data.toybox.grammar import Spec
from threedgen.data.toybox.raycast import render
from threedgen.data.toybox.world import build
from threedgen.geometry.rigs import orbit
from threedgen.run.folder import CHECKPOINTS
from threedgen.run.threads import set_threads
from threedgen.systems.generate.system import GenerateSystem
from threedgen.train.checkpoint_file import latest

from .clock import Case

CONFIG = "mvdream-toybox"
PROMPT = "a blue dog wearing a red hat"
FIT_STEPS, FIT_SIZE, FIT_VIEWS = 180, 40, 4


class Bench:
    """What the systems to compare share: prior, text, and the field, from the folder ``run`` if there is one."""

    def __init__(self, overrides: list[str], run: Path | None = None) -> None:
        self.overrides = [f"prompt={PROMPT}", *overrides]
        config = load(CONFIG, self.overrides)
        set_threads(config.threads)
        self.prior: Any = registry.build("prior", config.prior)
        self.text = self.prior.encode_prompt([PROMPT, ""]).float()
        self.state: dict[str, Any] = {}
        self.state = self.fitted() if run is None else trained(run)
        self.about = "a field fitted to pictures of a dog" if run is None else f"the field of {run.name}"

    def system(self, *extra: str, **views: Any) -> GenerateSystem:
        """A system of the default config, which distils at once, with some options changed and the field that all
        share."""
        words = [*self.overrides, "warm_start.share=0", *extra]
        made = GenerateSystem(load(CONFIG, words), self.prior, self.text, **views)
        made.load_state_dict(self.state, strict=False)
        return made.train()

    def fitted(self) -> dict[str, Any]:
        """The state after a warm start from ground-truth pictures of the prompt."""
        dog = build(Spec("dog", "blue", "large", "hat", "red"), np.random.default_rng(0))
        cameras = orbit(FIT_VIEWS, 0.3, 2.6, math.radians(40), FIT_SIZE, FIT_SIZE)
        seen = render([dog], np.zeros(FIT_VIEWS, int), cameras.c2w.numpy(), cameras.fov.numpy(), FIT_SIZE)
        words = (f"trainer.max_steps={FIT_STEPS}", "warm_start.share=1", "refine.strengths=[]")
        system = self.system(*words, views=torch.from_numpy(seen.rgb), view_cameras=cameras)
        steps(system, 0, FIT_STEPS, frozen=False)()
        return system.state_dict()


def steps(system: GenerateSystem, first: int, count: int, frozen: bool = True) -> Callable[[], None]:
    """A function that makes the steps first ... first + count - 1 of a system in the precision of its config.

    ``frozen``: learning rate 0, so that the field stays as it is while the optimiser does all of its work.
    """
    fabric = Fabric(accelerator=system.device.type, devices=1, precision=system.config.trainer.precision)
    made: Any = system.configure_optimizers()
    for group in made["optimizer"].param_groups:
        group["lr"] = 0.0 if frozen else group["lr"]
    optimizer: Any = fabric.setup_optimizers(made["optimizer"])

    def run() -> None:
        for step in range(first, first + count):
            optimizer.zero_grad(set_to_none=True)
            with fabric.autocast():
                loss = system.training_step(step, step)
            fabric.backward(loss)
            optimizer.step()

    return run


def timed(system: GenerateSystem, begin: int) -> Case:
    """The steps of a system from ``begin`` on, from one update of its occupancy grid to the next; one without it."""
    count = 1 if system.config.occupancy is None else system.config.occupancy.interval
    return Case(steps(system, -(-begin // count) * count, count), count)


def trained(run: Path) -> dict[str, Any]:
    """The state in the newest checkpoint of a run. Raises ConfigError if there is none."""
    found = latest(run / CHECKPOINTS)
    if found is None:
        raise ConfigError(f"--run: {run} has no checkpoint")
    return found[1]["state_dict"]
