"""The task train-matte: the network it leaves, and its training images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.task_server import finished_run
from tests.support.tiny_trainings import TINY_MATTE, matte_command
from threedgen import config
from threedgen.guidance.matte import Matte
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.run.metrics import read_summary
from threedgen.toybox.training import matte
from threedgen.toybox.training.matte import MatteImages
from threedgen.toybox.training.options import TrainMatteConfig


def test_run_leaves_a_matte_for_fits() -> None:
    run = finished_run(matte_command)
    figures = read_summary(run)["matte"]
    assert 0 <= figures["iou"] <= 1 and 0 < figures["error"] < 1
    assert Matte.load(str(run / "matte")).opacity(torch.rand(1, 32, 32, 3)).shape == (1, 32, 32)
    config.load("quick-toybox", [f"fit.matte={run / 'matte'}", "prompt=a red dog"]).check()


def test_images_are_renders_with_their_opacity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matte, "JUMBLES", 0.0)
    options = TrainMatteConfig.model_validate(TINY_MATTE)
    prior = LatentDiffusion.load("toybox-base")
    images = MatteImages(tmp_path, prior, 32, options)
    rgba = images(np.arange(8))
    assert rgba.shape == (8, 32, 32, 4)
    border = torch.cat([rgba[:, 0], rgba[:, -1], rgba[:, :, 0], rgba[:, :, -1]], 1)
    assert border[..., 3].max() < 0.01 and 0.3 < border[..., :3].mean() < 0.7
    assert 0.05 < rgba[..., 3].mean() < 0.6 and (rgba[..., 3] > 0.99).flatten(1).any(1).all()
    assert torch.equal(rgba[[5, 2]], MatteImages(tmp_path / "again", prior, 32, options)(np.array([5, 2])))
