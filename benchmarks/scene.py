"""Set up systems of the task generate with a trained field, and run their steps without a Lightning trainer.

The amount of empty space determines the cost of a step, so an untrained field is not a valid test case. `Bench` fits
the field to ground-truth images of a toybox dog, which takes seconds and no trained prior, or loads a checkpoint.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from threedgen.config import load, registry
from threedgen.config.errors import ConfigError
from threedgen.geometry.rigs import orbit
from threedgen.run.folder import CHECKPOINTS
from threedgen.run.threads import set_threads
from threedgen.systems.generate.system import GenerateSystem
from threedgen.toybox.world.grammar import Spec
from threedgen.toybox.world.raycast import render
from threedgen.toybox.world.toybox import build
from threedgen.train.checkpoint_file import latest
from threedgen.train.loop import determinism, deterministic

from .clock import Case

CONFIG = "mvdream-toybox"
PROMPT = "a blue dog wearing a red hat"
FIT_STEPS, FIT_SIZE, FIT_VIEWS = 180, 40, 4


class Bench:
    """Data that all compared systems share: prior, text embedding and field.

    The field comes from the run folder `run`, or is fitted to images if `run` is None. `overrides` are key=value
    changes of the config CONFIG. The constructor raises ConfigError if an override is invalid or the run has no
    checkpoint.
    """

    def __init__(self, overrides: list[str], run: Path | None = None) -> None:
        self.overrides = [f"prompt={PROMPT}", *overrides]
        config = load(CONFIG, self.overrides)
        set_threads(config.threads)
        self.prior: Any = registry.build("prior", config.prior)
        self.text = self.prior.encode_prompt([PROMPT, ""]).float()
        self.state: dict[str, Any] = {}
        self.state = self.fit_field() if run is None else load_state(run)
        self.about = "a field fitted to images of a dog" if run is None else f"the field of {run.name}"

    def system(self, *extra: str, **views: Any) -> GenerateSystem:
        """Return a system of the config CONFIG with the shared field and no warm start, in training mode.

        `extra` are further key=value overrides, and `views` are passed to `GenerateSystem` (images and cameras).
        """
        overrides = [*self.overrides, "warm_start.share=0", *extra]
        system = GenerateSystem(load(CONFIG, overrides), self.prior, self.text, **views)
        system.load_state_dict(self.state, strict=False)
        return system.train()

    def fit_field(self) -> dict[str, Any]:
        """Return the system's state dict after a warm start from ground-truth images of the prompt's object."""
        dog = build(Spec("dog", "blue", "large", "hat", "red"), np.random.default_rng(0))
        cameras = orbit(FIT_VIEWS, 0.3, 2.6, math.radians(40), FIT_SIZE, FIT_SIZE)
        renders = render([dog], np.zeros(FIT_VIEWS, int), cameras.c2w.numpy(), cameras.fov.numpy(), FIT_SIZE)
        overrides = (f"trainer.max_steps={FIT_STEPS}", "warm_start.share=1", "refine.strengths=[]")
        system = self.system(*overrides, views=torch.from_numpy(renders.rgb), view_cameras=cameras)
        steps(system, 0, FIT_STEPS, frozen=False)()
        return system.state_dict()


def stepper(system: GenerateSystem, frozen: bool = True) -> Callable[[int], torch.Tensor]:
    """Return a function from a step number that runs this training step of a system and returns the loss.

    Precision, deterministic algorithms and cuDNN's benchmark mode are set as in a run of the system's config. `frozen`
    sets the learning rate to 0, so that the field does not change but the optimiser does all of its work.
    """
    fabric = Fabric(accelerator=system.device.type, devices=1, precision=system.config.trainer.precision)
    configured: Any = system.configure_optimizers()
    for group in configured["optimizer"].param_groups:
        group["lr"] = 0.0 if frozen else group["lr"]
    optimizer: Any = fabric.setup_optimizers(configured["optimizer"])

    def run(step: int) -> torch.Tensor:
        with determinism(deterministic(system.config.trainer)):
            optimizer.zero_grad(set_to_none=True)
            with fabric.autocast():
                loss = system.training_step(step, step)
            fabric.backward(loss)
            optimizer.step()
            return loss.detach()

    return run


def steps(system: GenerateSystem, first: int, count: int, frozen: bool = True) -> Callable[[], None]:
    """Return a function that runs the training steps first ... first + count - 1 of a system.

    `frozen` sets the learning rate to 0.
    """
    step = stepper(system, frozen)

    def run() -> None:
        for number in range(first, first + count):
            step(number)

    return run


def step_case(system: GenerateSystem, begin: int) -> Case:
    """Return a case of the steps in one update interval of the occupancy grid, the first at or after step `begin`.

    A system without an occupancy grid runs one step.
    """
    count = 1 if system.config.occupancy is None else system.config.occupancy.interval
    return Case(steps(system, -(-begin // count) * count, count), count)


def load_state(run: Path) -> dict[str, Any]:
    """Return the state dict of the newest checkpoint of a run. Raises ConfigError if there is none."""
    checkpoint = latest(run / CHECKPOINTS)
    if checkpoint is None:
        raise ConfigError(f"{run} has no checkpoint", "--run")
    return checkpoint[1]["state_dict"]
