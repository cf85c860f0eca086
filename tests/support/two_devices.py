"""A training on two devices (CPU processes unless named) where some parameters have no gradient in every other step.

python two_devices.py FOLDER [gpu]        Lightning starts the second process by the same command
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytorch_lightning as pl
import torch

from threedgen.config.sections import CheckpointConfig, TrainerConfig
from threedgen.train.loop import fit

STEPS = 6


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


if __name__ == "__main__":
    accelerator: Any = sys.argv[2] if len(sys.argv) > 2 else "cpu"
    trainer = TrainerConfig(accelerator=accelerator, devices=2, max_steps=STEPS)
    config = SimpleNamespace(trainer=trainer, checkpoint=CheckpointConfig(), seed=0, threads=1)
    module = Toy()
    before = module.background.weight.detach().clone()
    status = fit(module, config, Path(sys.argv[1]), quiet=True)
    assert not torch.equal(module.background.weight, before)
    words = status.value, module.trainer.world_size, module.trainer.global_step
    os.write(1, (" ".join(map(str, words)) + "\n").encode())  # one call: both processes write to one pipe
