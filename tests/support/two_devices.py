"""Trainings on two devices: of a module where some parameters have no gradient in every other step, and of a tiny run
of mvdream-sd21-shading, where each process has its own cameras and shading.

python two_devices.py FOLDER toy ACCELERATOR | generate CHUNK        Lightning starts the second process alike
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch

from threedgen.config import load
from threedgen.config.sections import CheckpointConfig, TrainerConfig
from threedgen.train.loop import fit

STEPS = {"toy": 6, "generate": 12}


class Toy(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.object, self.background = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        self.config_yaml, self.weights = "", dict[str, str]()
        self.terms, self.metrics = dict[str, float](), dict[str, float]()

    def training_step(self, batch: int, index: int) -> torch.Tensor:
        result = self.object(torch.ones(2, device=self.device) * self.global_rank)
        return (result + self.background(torch.ones(2, device=self.device)) if batch % 2 else result).square().sum()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def toy(accelerator: Any) -> tuple[Any, Any, list[str]]:
    trainer = TrainerConfig(accelerator=accelerator, devices=2, max_steps=STEPS["toy"])
    return Toy(), SimpleNamespace(trainer=trainer, checkpoint=CheckpointConfig(), seed=0, threads=1), []


def generate(chunk: str) -> tuple[Any, Any, list[str]]:
    """Return the system, its config, and a list for the shading modes that it samples."""
    from tests.support.small_run import SMALL, small_field
    from tests.support.tiny_prior import tiny_prior
    from threedgen.systems.generate.system import GenerateSystem

    words = [
        "prompt=a red dog", *SMALL, *small_field(), "size=8", "scenes_per_step=1", "occupancy.warmup=4",
        "occupancy.interval=2", "material.ambient_only_steps=3", "trainer.devices=2", f"march.chunk={chunk}",
        f"trainer.max_steps={STEPS['generate']}", "trainer.precision=32-true", "trainer.val_check_interval=0",
    ]  # fmt: skip
    config, prior = load("mvdream-sd21-shading", words), tiny_prior()
    system = GenerateSystem(config, prior, prior.encode_prompt(["a red dog", ""]))
    sample, modes = system.material.sample_shading, list[str]()

    def record(*args: Any) -> Any:
        shading = sample(*args)
        modes.append(shading.mode)
        return shading

    system.material.sample_shading = record  # type: ignore[method-assign]
    return system, config, modes


if __name__ == "__main__":
    from tests.support.toy_run import digest

    module, config, modes = {"toy": toy, "generate": generate}[sys.argv[2]](sys.argv[3])
    before = [p.detach().clone() for p in module.parameters()]
    status = fit(module, config, Path(sys.argv[1]), quiet=True)
    trained = all(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    words = status.value, module.trainer.world_size, module.trainer.global_step, trained, digest(module.cpu())
    os.write(1, (" ".join([*map(str, words), ",".join(modes)]) + "\n").encode())  # one call: both write to one pipe
