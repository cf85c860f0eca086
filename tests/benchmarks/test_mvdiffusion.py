"""Benchmark of MVDiffusion at a tiny size, with a stand-in for the reference; speed itself is not tested."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import mvdiffusion, mvdiffusion_sides
from benchmarks.mvdiffusion_sides import NETWORK, measure
from tests.support.errors import refused
from threedgen.guidance.priors.mvdiffusion.geometry import PanoramaGeometry
from threedgen.guidance.priors.mvdiffusion.unet import MultiviewUNet


class StandIn(MultiviewUNet):
    """Our network with the interface of the reference; `error` is added to its output."""

    error = 0.0

    def __init__(self, unet: Any, config: dict[str, Any]) -> None:
        super().__init__(unet)
        assert config == {"single_image_ft": False}

    def forward(self, x: Tensor, t: Tensor, text: Tensor, meta: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        size = 8 * x.shape[-1]
        geometry = PanoramaGeometry(meta["K"][1, 0], meta["R"][1], (size, size))
        flat = super().forward(x.flatten(0, 1), t.flatten(), text.flatten(0, 1), geometry)
        return flat.unflatten(0, x.shape[:2]) + self.error


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module: Any = ModuleType(NETWORK)
    module.MultiViewBaseModel = StandIn
    monkeypatch.setitem(sys.modules, NETWORK, module)
    monkeypatch.setitem(sys.modules, "einops", ModuleType("einops"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(mvdiffusion, "run_in_process", measure)
    monkeypatch.setattr(mvdiffusion_sides, "COMPARED", 32)
    monkeypatch.setattr(mvdiffusion_sides, "TEXT", 16)
    file = tmp_path / "src" / "models" / "pano" / "MVGenModel.py"
    file.parent.mkdir(parents=True)
    file.touch()
    return tmp_path


def table(reference: Path | None, **changes: Any) -> Any:
    options = {"views": 8, "size": 32, "steps": 2, "widths": (64, 64), "device": "cpu"}
    return mvdiffusion.table(reference, **(options | changes))


def test_networks_with_different_outputs_are_refused(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours, half = table(reference).rows
    assert (theirs["case"], ours["case"]) == ("reference", "ours") and theirs["ratio"] == theirs["peak ratio"] == 1
    assert ours["of them weights"] == theirs["of them weights"] < theirs["peak GB"]
    assert half["case"] == "ours, bfloat16" and half["of them weights"] < ours["of them weights"]
    assert min(ours["first step, s"], ours["CPU, s"], ours["ratio"], ours["beside the weights"]) > 0
    monkeypatch.setattr(StandIn, "error", 1.0)
    with refused(None, "ours", 0.01):
        table(reference)


@pytest.mark.parametrize(
    ("changes", "key", "values"),
    [
        ({"views": 4}, "--views", (4, 5)),
        ({"size": 24}, "--size", (24, 16)),
        ({"widths": (64, 100)}, "--widths", (64, 100)),
        ({"device": "cuda"}, "--device", ("cuda", "cpu")),
        ({}, "--reference", ("MVDiffusion",)),
    ],
)
def test_invalid_options_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], key: str, values: tuple
) -> None:
    monkeypatch.setattr(mvdiffusion, "run_in_process", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused(key, *values):
        table(tmp_path, **changes)


def test_missing_reference_is_refused() -> None:
    with refused("--reference"):
        table(None)
