"""The benchmark of MVDiffusion at a tiny size, with a stand-in for the reference; how fast it is, is not tested."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import mvdiffusion, mvdiffusion_sides
from benchmarks.mvdiffusion_sides import NETWORK, measure
from threedgen.config import ConfigError
from threedgen.guidance.mvdiffusion.geometry import PanoramaGeometry
from threedgen.guidance.mvdiffusion.unet import MultiviewUNet


class StandIn(MultiviewUNet):
    """Called as the reference is."""

    wrong = 0.0

    def __init__(self, unet: Any, config: dict[str, Any]) -> None:
        super().__init__(unet)
        assert config == {"single_image_ft": False}

    def forward(self, x: Tensor, t: Tensor, text: Tensor, meta: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        size = 8 * x.shape[-1]
        geometry = PanoramaGeometry(meta["K"][1, 0], meta["R"][1], (size, size))
        flat = super().forward(x.flatten(0, 1), t.flatten(), text.flatten(0, 1), geometry)
        return flat.unflatten(0, x.shape[:2]) + self.wrong


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module: Any = ModuleType(NETWORK)
    module.MultiViewBaseModel = StandIn
    monkeypatch.setitem(sys.modules, NETWORK, module)
    monkeypatch.setitem(sys.modules, "einops", ModuleType("einops"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(mvdiffusion, "alone", measure)
    monkeypatch.setattr(mvdiffusion_sides, "COMPARED", 32)
    monkeypatch.setattr(mvdiffusion_sides, "TEXT", 16)
    file = tmp_path / "src" / "models" / "pano" / "MVGenModel.py"
    file.parent.mkdir(parents=True)
    file.touch()
    return tmp_path


def table(reference: Path | None, **changed: Any) -> Any:
    options = {"views": 8, "size": 32, "steps": 2, "widths": (64, 64), "device": "cpu"}
    return mvdiffusion.table(reference, **(options | changed))


def test_both_sides_have_the_same_weights_and_outputs(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours, half = table(reference).rows
    assert (theirs["case"], ours["case"]) == ("reference", "ours") and theirs["ratio"] == theirs["peak ratio"] == 1
    assert ours["of them weights"] == theirs["of them weights"] < theirs["peak GB"]
    assert half["case"] == "ours, bfloat16" and half["of them weights"] < ours["of them weights"]
    assert min(ours["first step, s"], ours["CPU, s"], ours["ratio"], ours["beside the weights"]) > 0
    monkeypatch.setattr(StandIn, "wrong", 1.0)
    with pytest.raises(ConfigError, match="the outputs differ by"):
        table(reference)


def test_what_cannot_be_measured_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mvdiffusion, "alone", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for changed, said in (
        ({"views": 4}, "4 views of 90 degrees do not overlap"),
        ({"size": 24}, "24 should be a multiple of 16"),
        ({"widths": (64, 100)}, "multiples of 64"),
        ({"device": "cuda"}, "no CUDA GPU"),
        ({}, "is no clone of"),
    ):
        with pytest.raises(ConfigError, match=said):
            table(tmp_path, **changed)
    with pytest.raises(ConfigError, match="name a clone"):
        table(None)
