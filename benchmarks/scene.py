"""A generate run in the middle of its work: the default config with a field that holds an object.

How much empty space there is to skip decides the cost of a step, so a field just born says nothing.  This one is
fitted to ground-truth pictures of a toybox dog, which takes seconds and does not depend on the prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from threedgen import registry
from threedgen.cameras import Cameras, orbit, sample_multiview
from threedgen.config import load
from threedgen.data.toybox.grammar import Spec
from threedgen.data.toybox.raycast import render
from threedgen.data.toybox.world import build
from threedgen.loop import set_threads
from threedgen.representations.march import march
from threedgen.seeding import generator
from threedgen.systems.generate import GenerateSystem

CONFIG = "mvdream-toybox"
PROMPT = "a blue dog wearing a red hat"
FIT_STEPS, FIT_SIZE, FIT_VIEWS = 60, 40, 4
TWINS = ["field.encoding.backend=torch", "march.backend=torch"]
NO_SKIPPING = ["march.sampler=stratified", "occupancy=null"]


@dataclass
class Bench:
    """The systems to compare share prior, text and field."""

    overrides: list[str]
    prior: Any = None
    text: Any = None
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = load(CONFIG, [f"prompt={PROMPT}", *self.overrides])
        set_threads(config.threads)
        self.prior = registry.build("prior", config.prior)
        self.text = self.prior.encode_prompt([PROMPT, ""]).float()
        self.state = self.fit()

    def system(self, *extra: str) -> GenerateSystem:
        """A system of the default config with some options changed, past its warm start, with the fitted field."""
        warm = [f"warm_start.steps={FIT_STEPS}", f"warm_start.size={FIT_SIZE}"]
        config = load(CONFIG, [f"prompt={PROMPT}", *self.overrides, *warm, *extra])
        cameras = orbit(FIT_VIEWS, 0.3, 2.6, math.radians(40), FIT_SIZE, FIT_SIZE)
        made = GenerateSystem(config, self.prior, self.text, pictures(cameras), cameras)
        made.load_state_dict(self.state, strict=False)
        return made.train()

    def fit(self) -> dict[str, Any]:
        """The state after fitting the pictures, with the fast variant."""
        made = self.system()
        stepper = Stepper(made)
        for step in range(FIT_STEPS):
            stepper.step(step)
        return made.state_dict()


class Stepper:
    """Optimisation steps of a system without Lightning around them; ``frozen``: learning rate 0, so that the field
    stays as it is while the optimiser does all of its work."""

    def __init__(self, system: GenerateSystem, frozen: bool = False) -> None:
        self.system = system
        made: Any = system.configure_optimizers()
        self.optimizer = made["optimizer"] if isinstance(made, dict) else made
        if frozen:
            for group in self.optimizer.param_groups:
                group["lr"] = 0.0

    def step(self, step: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.system.training_step(step, step)
        loss.backward()
        self.optimizer.step()


def pictures(cameras: Cameras) -> torch.Tensor:
    """Ground truth of the prompt on grey: (B, H, W, 3)."""
    dog = build(Spec("dog", "blue", "large", "hat", "red"), np.random.default_rng(0))
    owner = np.zeros(len(cameras), np.int64)
    c2w, fov = cameras.c2w.numpy(), cameras.fov.numpy()
    return torch.from_numpy(render([dog], owner, c2w, fov, cameras.height).rgb)


def points_of(system: GenerateSystem, step: int) -> int:
    """How many points the field is asked for in a step."""
    config, size = system.config, system.size(step)
    rng = generator(config.seed, step, "cameras")
    cameras = sample_multiview(config.camera, rng, step, height=size, width=size)
    origins, directions = (rays.reshape(-1, 3) for rays in cameras.rays())
    grid = None if system.occupancy is None else system.occupancy.binary
    return len(march(origins, directions, config.march, grid))
