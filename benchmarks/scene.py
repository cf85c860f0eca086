"""A generate run in the middle of its work: the default config with a field that holds an object.

How much empty space there is to skip decides the cost of a step, so a field just born says nothing.  This one
is fitted to ground-truth pictures of a toybox dog, which takes seconds and needs no trained prior; or it
comes from the checkpoint of a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threedgen.config import load, registry
from threedgen.config.errors import ConfigError
from threedgen.data.toybox.grammar import Spec
from threedgen.data.toybox.raycast import render
from threedgen.data.toybox.world import build
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.rigs import orbit, sample_multiview
from threedgen.representations.march import march
from threedgen.run.seeding import generator
from threedgen.systems.generate.system import GenerateSystem
from threedgen.train.checkpoint import latest
from threedgen.train.loop import CHECKPOINTS, set_threads

CONFIG = "mvdream-toybox"
PROMPT = "a blue dog wearing a red hat"
FIT_STEPS, FIT_SIZE, FIT_VIEWS = 60, 40, 4
TWINS = ["field.encoding.backend=torch", "march.backend=torch"]
NO_SKIPPING = ["march.sampler=stratified", "occupancy=null"]


@dataclass
class Bench:
    """What the systems to compare share: prior, text, field; ``run``: a folder to take the field from."""

    overrides: list[str]
    run: Path | None = None
    prior: Any = None
    text: Any = None
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = load(CONFIG, [f"prompt={PROMPT}", *self.overrides])
        set_threads(config.threads)
        self.prior = registry.build("prior", config.prior)
        self.text = self.prior.encode_prompt([PROMPT, ""]).float()
        self.state = fit(self.system()) if self.run is None else trained(self.run)

    def system(self, *extra: str) -> GenerateSystem:
        """A system of the default config with some options changed, with the field that all share."""
        config = load(CONFIG, [f"prompt={PROMPT}", *self.overrides, *extra])
        made = GenerateSystem(config, self.prior, self.text)
        made.load_state_dict(self.state, strict=False)
        return made.train()

    @property
    def about(self) -> str:
        """Where the field comes from."""
        return "a field fitted to pictures of a dog" if self.run is None else f"the field of {self.run.name}"


class Stepper:
    """Optimisation steps of a system without Lightning around them.

    ``frozen``: learning rate 0, so that the field stays as it is while the optimiser does all of its work.
    """

    def __init__(self, system: GenerateSystem, frozen: bool = False) -> None:
        self.system = system
        made: Any = system.configure_optimizers()
        self.optimizer = made["optimizer"] if isinstance(made, dict) else made
        if frozen:
            for group in self.optimizer.param_groups:
                group["lr"] = 0.0

    def step(self, step: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.system.training_step(step, step).backward()
        self.optimizer.step()


def fit(system: GenerateSystem) -> dict[str, Any]:
    """The state after some steps towards ground truth, colour and opacity, as the fast variant renders it."""
    cameras = orbit(FIT_VIEWS, 0.3, 2.6, math.radians(40), FIT_SIZE, FIT_SIZE)
    colour, opacity = pictures(cameras)
    optimizer = Stepper(system).optimizer
    for step in range(FIT_STEPS):
        if system.occupancy is not None:
            system.occupancy.update(system.field.density, step, generator(0, step, "occupancy"))
        seen = system.render(cameras, step, training=False, grad=True)
        loss = (seen.rgb_fg - colour).square().mean() + (seen.opacity - opacity).square().mean()
        optimizer.zero_grad(set_to_none=True)
        (10 * loss).backward()
        optimizer.step()
    return system.state_dict()


def pictures(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Ground truth of the prompt, as rays: colour times opacity (R, 3), opacity (R, 1)."""
    dog = build(Spec("dog", "blue", "large", "hat", "red"), np.random.default_rng(0))
    owner = np.zeros(len(cameras), np.int64)
    c2w, fov = cameras.c2w.numpy(), cameras.fov.numpy()
    black, white = (render([dog], owner, c2w, fov, cameras.height, grey).rgb for grey in (0.0, 1.0))
    colour = torch.from_numpy(black).reshape(-1, 3)
    return colour, 1 - (torch.from_numpy(white).reshape(-1, 3) - colour).mean(1, keepdim=True)


def trained(run: Path) -> dict[str, Any]:
    """The state in the newest checkpoint of a run.  Raises ConfigError if there is none."""
    found = latest(run / CHECKPOINTS)
    if found is None:
        raise ConfigError(f"--run: {run} has no checkpoint")
    return found[1]["state_dict"]


def points_of(system: GenerateSystem, step: int) -> int:
    """How many points the field is asked for in a step."""
    config, size = system.config, system.size(step)
    rng = generator(config.seed, step, "cameras")
    cameras = sample_multiview(config.camera, rng, step, height=size, width=size).cameras
    origins, directions = (rays.reshape(-1, 3) for rays in cameras.rays())
    grid = None if system.occupancy is None else system.occupancy.binary
    return len(march(origins, directions, config.march, grid))
