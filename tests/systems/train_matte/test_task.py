"""The task "train-matte": what a run leaves, and that one which was killed ends the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.support.marks import unix
from tests.support.task_server import assert_killed_ends_the_same, finished_run, write_config
from threedgen import config
from threedgen.guidance.matte import Matte
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.run.metrics import read_summary
from threedgen.systems.train_matte.options import TrainMatteConfig
from threedgen.systems.train_matte.task import Pictures

TINY: dict[str, Any] = {
    "task": "train-matte",
    "threads": 1,
    "network": {"size": 32, "channels": [4, 6]},
    "training": {"batch": 4, "first": 8, "pictures": 32, "bf16": False},
    "measured": 4,
    "trainer": {"max_steps": 6, "val_check_interval": 0, "log_every_n_steps": 2, "accelerator": "cpu"},
    "checkpoint": {"seconds": 0},
}


def command(folder: Path, *overrides: str) -> list[str]:
    return ["--config", str(write_config(folder / "tiny.yaml", TINY)), "out=run", *overrides]


@unix
def test_a_run_leaves_a_matte_that_fits_take() -> None:
    run = finished_run(command)
    figures = read_summary(run)["matte"]
    assert 0 <= figures["iou"] <= 1 and 0 < figures["error"] < 1
    assert Matte.load(str(run / "matte")).opacity(torch.rand(1, 32, 32, 3)).shape == (1, 32, 32)
    config.load("quick-toybox", [f"fit.matte={run / 'matte'}", "prompt=a red dog"]).check()


def test_pictures_are_true_renders_with_their_opacity(tmp_path: Path) -> None:
    options = TrainMatteConfig.model_validate({**TINY, "training": {**TINY["training"], "jumbles": 0.0}})
    prior = StableDiffusion.load("toybox-base")
    pictures = Pictures(tmp_path, prior, 32, options)
    rgba = pictures(np.arange(8))
    assert rgba.shape == (8, 32, 32, 4)
    border = torch.cat([rgba[:, 0], rgba[:, -1], rgba[:, :, 0], rgba[:, :, -1]], 1)
    assert border[..., 3].max() < 0.01 and 0.3 < border[..., :3].mean() < 0.7
    assert 0.05 < rgba[..., 3].mean() < 0.6 and (rgba[..., 3] > 0.99).flatten(1).any(1).all()
    assert torch.equal(rgba[[5, 2]], Pictures(tmp_path / "again", prior, 32, options)(np.array([5, 2])))


@unix
def test_a_killed_run_ends_the_same(tmp_path: Path) -> None:
    files = ("matte/config.json", "matte/diffusion_pytorch_model.safetensors")
    assert_killed_ends_the_same(tmp_path, command, [(3, "Matte", "")], files)
